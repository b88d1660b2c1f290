"""What `load_pipeline` is made of, for programs that show or change a file before they run it.

>>> content = {"steps": [{"name": "hello", "command": "echo hello"}]}
>>> plan = plan_of(with_set(content, "steps.hello.timeout", "60"), "hello.toml")
>>> print(*plan.lines(), sep="\\n")
hello
  hello: echo hello  (timeout=60)
>>> pipeline_of(plan).name
'hello'
"""

from ._plan import Plan as Plan, Watch as Watch, pipeline_of as pipeline_of
from ._read import read_file as read_file
from ._schema import schema as schema
from ._settings import with_set as with_set
from ._structure import plan_of as plan_of
