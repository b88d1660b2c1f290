"""`Plan`: what a file says, shown before it runs."""

from pathlib import Path

from trio_parallel_steps.files import plan_of, read_file

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"


def test_a_line_for_each_step_and_branch_with_all_that_is_said_of_it() -> None:
    file = EXAMPLES / "nightly.toml"
    config = "execution_config"
    assert list(plan_of(read_file(file), file).lines()) == [
        (
            f"nightly  ({config}.max_parallel_steps=4, {config}.resource_limits."
            f"max_memory_mb=1024, {config}.resource_limits.max_cpu_percent=80, "
            f"{config}.usage_limits={{usd=2.5}}, "
            f"{config}.timeout=3600)"
        ),
        "  list: call census:list_modules",
        (
            "  check  (merge_strategy=overwrite, on_branch_failure=ignore, "
            "priorities={high_priority_types=10}, concurrency.max_concurrent_branches=2, "
            "concurrency.adaptive_limits=False, concurrency.cancel_rules=[CancelRule("
            "when='high_priority_*', cancel='low_priority_*', on='success')])"
        ),
        "    high_priority_types: mypy --strict trio_parallel_steps  (timeout=600)",
        (
            f"    tests: pytest -q  (env={{CI=true}}, cwd={EXAMPLES}, retry.on=[CommandFailed], "
            "retry.attempts=2)"
        ),
        "    low_priority_docs",
        "      build: sphinx-build docs build/docs",
    ]


def test_the_name_is_the_files_if_it_has_none() -> None:
    content = {"steps": [{"name": "a", "command": ["echo", "a b"], "timeout": 0.5}]}
    plan = plan_of(content, "some/file.toml")
    assert list(plan.lines()) == ["file", "  a: echo 'a b'  (timeout=0.5)"]
    assert plan_of({**content, "name": "x"}, "some/file.toml").name == "x"
