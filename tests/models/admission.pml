/* Admission with lend and swap: every program of a few branches, under every schedule.

A program (who is in whose block, pools, caps, weights) is chosen first, then its branches run.  The
core is synchronous, so what happens in it between two checkpoints is one atomic step here.  The
README beside this file maps each inline to the function that it stands for, and says what is left
out.

1. Nothing of the schedule is fixed: any task that may go on is the next; a branch waits, is stopped
   or ends at any time.
2. Priority, depth and arrival are not counted: among branches that have not begun, any may be the
   best whenever a pool is looked at.  What holds here holds for each order, and each change of it.
3. Budgets (WAITS, CUTS, STOPS) bound what a program does, so that each run is finite.
4. `Watch` looks at every state; `init` blocks for ever if not all ends, which spin reports as an
   invalid end state.

-D N= branches (1-5), LEVELS= of nesting, POOLS= (1-3), CAP= at most, WEIGHT= at most,
   WAITS= CUTS= STOPS= how often, AUX (a second task in each branch, which may outlive it),
   ONE_BY_ONE (branches are not submitted all at once), P1= .. P4= (the parent of that branch).

OUTSIDE_ONLY leaves out what only the core could see: a broken rule is let run on into its deadlock.

Each switch that is left breaks a rule: of `_admission` (A), of `_parking` (P), or of the above.

   HOLD                  a wait lends nothing                          P1
   LEND_INNERMOST        it lends in its own pool, not in the chain    P1
   RESUME_WITHOUT_TOKEN  the end of a wait asks for nothing            P1
   NO_WITHDRAWAL         a wait leaves the branch's request queued     P3
   STOPPED_QUEUES        a stopped branch is dropped from the queue    P5
   NO_CIRCLE_CHECK       every wait may begin                          P6
   SHORT_CIRCLES_ONLY    only the waiter's own waiters are looked at   P6
   NOT_ALONE             a weight above the cap never fits             A2
   OUTERMOST_ONLY        a grant looks at the root only                A2
   NO_RESUME_FIRST       who resumes has no precedence                 A3
   NO_HEAD               who fits passes who does not                  A4
   NO_UNBLOCK            nobody looks when a waiter has gone           A6
   BORROWERS_UNCHECKED   any token is passed on as if it weighed 1     A8
   HEIR_UNCHECKED        a token is handed over whatever it weighs     A8
   ENDLESS_WAITS         waits cost nothing, so programs need not end  3 */

#ifndef N
#define N 3
#endif
#ifndef LEVELS
#define LEVELS 3
#endif
#ifndef POOLS
#define POOLS 2
#endif
#ifndef CAP
#define CAP 2
#endif
#ifndef WEIGHT
#define WEIGHT 2
#endif
#ifndef WAITS
#define WAITS 1
#endif
#ifndef CUTS
#define CUTS 0
#endif
#ifndef STOPS
#define STOPS 0
#endif
#ifdef AUX
#define TASKS 2
#else
#define TASKS 1
#endif

#define MOST 5       /* branches: sizes of arrays, and of what is written out below */
#define NONE 7       /* no branch, no pool */
#define ANY 9
#ifndef P1
#define P1 ANY
#endif
#ifndef P2
#define P2 ANY
#endif
#ifndef P3
#define P3 ANY
#endif
#ifndef P4
#define P4 ANY
#endif

/* ------------------------------------------------------------------ the program */

byte parent[MOST];   /* the branch whose block it is in; NONE: the outermost step's */
byte weight[MOST];
byte pool[MOST];     /* of its step */
byte up[3];          /* the pool around a sub-cap; itself: a root */
byte root[3];        /* of its chain */
byte cap[3];

/* ------------------------------------------------------------------ its state */

mtype = { NEW, QUEUED, GRANTED, RUNNING, ENDED };
mtype status[MOST];
bool told[MOST];     /* to stop */
bool token[MOST];
bool borrowers[MOST];  /* its token is not just one of the ledger's: it weighs more, or is over the cap */
bool entry[MOST];    /* it resumes: it is in `line` */
byte line[MOST];     /* who resumes, first come first */
byte resumers;
bool cut[MOST + 1];  /* the step in its block has been stopped; [N]: the outermost */

#define FREE 7       /* what a task does: this, or waits for its branch's token, or for */
#define HELD 8
#define JOIN 9       /* the block in it, or a branch by its number */
byte does[2 * MOST]; /* by branch and task */
#define first(b) does[2 * (b)]
#define second(b) does[2 * (b) + 1]

byte used[3];
/* Of roots: */
byte waiting[3];
bool kicked[3];      /* a look is due at the next checkpoint */
bool plain[3];
bool resumer_is_passed;  /* by a branch that begins */
byte waits = WAITS;
byte cuts = CUTS;
byte stops = STOPS;

/* Within one step only, and 0 between steps. */
byte at[MOST];       /* the pool in which a waiter is a candidate */
byte best;
byte heir;
byte tree;           /* the root of the pools looked at */
byte target;
bool look[3];
bool has_left;
bool swapped;
/* Within one d_step only. */
hidden byte i, j, p, q, x, flag;
hidden byte seen[MOST];

#define step_of(b) (parent[b] == NONE -> N : parent[b])
#define in_chain(b, p) (pool[b] == p || up[pool[b]] == p || root[pool[b]] == p)
#define is_live(b) (status[b] == QUEUED || status[b] == GRANTED || status[b] == RUNNING)
#define is_waiter(b) (status[b] == QUEUED || entry[b])
#define is_in_wait(t) (does[t] < MOST || does[t] == JOIN)
#define is_parked(b) (status[b] == RUNNING && (is_in_wait(2 * (b)) || is_in_wait(2 * (b) + 1)))

#define fits_alone(p) (used[p] == 0)
#ifdef NOT_ALONE
#define fits(p, w) (used[p] + w <= cap[p])
#else
#define fits(p, w) (used[p] + w <= cap[p] || fits_alone(p))
#endif
#define fits_chain(b) \
    (fits(pool[b], weight[b]) && fits(up[pool[b]], weight[b]) && fits(root[pool[b]], weight[b]))

#define of_five(f) (f(0) || f(1) || f(2) || f(3) || f(4))
#define is_child_out(c) (parent[c] == b && is_live(c))
#define has_children_out (of_five(is_child_out))

/* ------------------------------------------------------------------ what must hold */

#define is_active(b) \
    ((status[b] == GRANTED || (status[b] == RUNNING && !is_parked(b) && !entry[b])) && !told[b])
#define weighs(b, p) ((is_active(b) && in_chain(b, p)) -> weight[b] : 0)
#define counts(b, p) ((is_active(b) && in_chain(b, p)) -> 1 : 0)
#define active(p) (weighs(0, p) + weighs(1, p) + weighs(2, p) + weighs(3, p) + weighs(4, p))
#define actives(p) (counts(0, p) + counts(1, p) + counts(2, p) + counts(3, p) + counts(4, p))
#define is_passed(p) (active(p) > cap[p] && actives(p) > 1)
#define cap_is_passed (is_passed(0) || is_passed(1) || is_passed(2))

#define lent(b, p) ((token[b] && in_chain(b, p)) -> weight[b] : 0)
#define all_lent(p) (lent(0, p) + lent(1, p) + lent(2, p) + lent(3, p) + lent(4, p))
#define books_are_wrong \
    (used[0] != all_lent(0) || used[1] != all_lent(1) || used[2] != all_lent(2))

#define lacks_token(b) (is_active(b) && !token[b])
#define runs_without_token of_five(lacks_token)

#define holds(b) (token[b] && is_parked(b))
#define holds_and_waits of_five(holds)

/* Somebody waits, nobody is about to look, and there is no head to stand behind. */
#define stands(b, r) (is_waiter(b) && root[pool[b]] == r && !fits_chain(b))
#define has_head(r) \
    (stands(0, r) || stands(1, r) || stands(2, r) || stands(3, r) || stands(4, r))
#define idles(r) (waiting[r] && !kicked[r] && !has_head(r))
#define is_left_waiting (idles(0) || idles(1) || idles(2))

#define is_left(b) \
    (is_live(b) || token[b] || entry[b] || \
     (status[b] == NEW && b < N && !cut[step_of(b)] && \
      (parent[b] == NONE || status[parent[b]] == RUNNING)))
#define all_has_ended (!of_five(is_left))

/* ------------------------------------------------------------------ looking */

inline granted(b)
{
    if
    :: status[b] == QUEUED -> status[b] = GRANTED
    :: else -> wake(b)
    fi
}

inline wake(b)
{
    if :: first(b) == HELD -> first(b) = FREE :: else fi;
    if :: second(b) == HELD -> second(b) = FREE :: else fi
}

inline use(b)
{
    token[b] = true;
    q = pool[b];
    do
    :: used[q] = used[q] + weight[b];
       if :: up[q] == q -> break :: else -> q = up[q] fi
    od;
    borrowers[b] = weight[b] != 1 || used[q] > cap[q]
}

inline release(b)
{
    token[b] = false;
    borrowers[b] = false;
    q = pool[b];
    do
    :: used[q] = used[q] - weight[b];
       if :: up[q] == q -> break :: else -> q = up[q] fi
    od;
    if :: !used[q] && !waiting[q] -> plain[q] = true :: else fi
}

inline leave_line(b)
{
    entry[b] = false;
    waiting[root[pool[b]]]--;
    i = 0;
    do :: line[i] == b -> break :: else -> i++ od;
    resumers--;
    do
    :: i < resumers -> line[i] = line[i + 1]; i++
    :: else -> break
    od;
    line[resumers] = 0
}

inline added(b)
{
    waiting[root[pool[b]]]++;
    if :: weight[b] != 1 || up[pool[b]] != pool[b] -> plain[root[pool[b]]] = false :: else fi
}

inline unblock(r)
{
#ifndef NO_UNBLOCK
    if :: !plain[r] && waiting[r] -> kicked[r] = true :: else fi
#else
    skip
#endif
}

inline lend(b)
{
    if
    :: entry[b] -> leave_line(b)
    :: else ->
       waiting[root[pool[b]]]--;
       x = 0;
       do
       :: x < N -> resumer_is_passed = resumer_is_passed || (entry[x] && in_chain(b, pool[x])); x++
       :: else -> break
       od
    fi;
    use(b);
    granted(b)
}

#define is_candidate(b, p) at[b] == p

/* The best in the pool, if it would admit it, is a candidate in the pool around it. */
inline admissible(p, r)
{
    if
    :: root[p] == r ->
       best = NONE;
#ifndef NO_RESUME_FIRST
       d_step {
           i = 0;
           do
           :: i < resumers && at[line[i]] != p -> i++
           :: else -> break
           od;
           if :: i < resumers -> best = line[i] :: else fi
       };
#endif
       if
       :: best != NONE
       :: best == NONE && is_candidate(0, p) -> best = 0
       :: best == NONE && is_candidate(1, p) -> best = 1
       :: best == NONE && is_candidate(2, p) -> best = 2
       :: best == NONE && is_candidate(3, p) -> best = 3
       :: best == NONE && is_candidate(4, p) -> best = 4
       :: else
       fi;
       if
#ifdef OUTERMOST_ONLY
       :: best != NONE && (p != r || fits(p, weight[best])) -> at[best] = up[p]
#else
       :: best != NONE && fits(p, weight[best]) -> at[best] = up[p]
#endif
       :: else -> best = NONE
       fi
    :: else
    fi
}

inline find(r)
{
    d_step {
        i = 0;
        do
        :: i < MOST ->
           at[i] = NONE;
           if
#ifdef NO_HEAD
           :: is_waiter(i) && fits_chain(i) -> at[i] = pool[i]
#else
           :: is_waiter(i) -> at[i] = pool[i]
#endif
           :: else
           fi;
           i++
        :: else -> break
        od;
        skip
    };
#if POOLS > 2
    admissible(2, r);
#endif
#if POOLS > 1
    admissible(1, r);
#endif
    admissible(0, r)
}

inline dispatch(r)
{
    kicked[r] = false;
    do
    :: find(r);
       if
       :: best == NONE -> break
       :: else -> d_step { lend(best) }
       fi
    od
}

inline look_around()
{
    do
    :: look[0] || look[1] || look[2] ->
       tree = (look[0] -> 0 : (look[1] -> 1 : 2));
       look[tree] = false;
       dispatch(tree)
    :: else -> break
    od;
    best = 0;
    tree = 0;
    d_step {
        i = 0;
        do :: i < MOST -> at[i] = 0; i++ :: else -> break od;
        skip
    }
}

/* ------------------------------------------------------------------ waits */

inline force(b)
{
    use(b);
    wake(b);
    unblock(root[pool[b]])
}

inline begin_wait(b)
{
    if
    :: is_parked(b)
    :: else ->
       if
#ifndef NO_WITHDRAWAL
       :: entry[b] -> leave_line(b); unblock(root[pool[b]]); wake(b)
#endif
#ifndef HOLD
       :: token[b] ->
#ifdef LEND_INNERMOST
          if :: up[pool[b]] == pool[b] -> release(b) :: else -> used[pool[b]] = used[pool[b]] - weight[b] fi;
#else
          release(b);
#endif
          look[root[pool[b]]] = true
#endif
       :: else
       fi
    fi
}

inline resume(b)
{
#ifdef RESUME_WITHOUT_TOKEN
    wake(b);
#else
    entry[b] = true;
    line[resumers] = b;
    resumers++;
    added(b);
    if :: !kicked[root[pool[b]]] -> look[root[pool[b]]] = true :: else fi
#endif
}

inline end_wait(b, t)
{
    does[t] = FREE;
    if
    :: status[b] == RUNNING && !is_parked(b) ->
       if
#if defined(HOLD) || defined(NO_WITHDRAWAL)
       :: token[b] || entry[b]
#endif
#ifdef LEND_INNERMOST
       :: token[b] -> used[pool[b]] = used[pool[b]] + weight[b]
#endif
       :: else ->
          does[t] = HELD;
          if
#ifndef STOPPED_QUEUES
          :: told[b] -> force(b)
#endif
          :: else -> resume(b)
          fi
       fi
    :: else
    fi
}

/* Who waits for whom, backwards from the waiter: is the target among them? */
inline check_no_circle(b, y)
{
    i = 0;
    do :: i < MOST -> seen[i] = (i == b); i++ :: else -> break od;
    j = 0;
    do
    :: j < N ->
       i = 0;
       do
       :: i < N && seen[i] == 1 ->
          seen[i] = 2;
          if :: parent[i] != NONE && !seen[parent[i]] -> seen[parent[i]] = 1 :: else fi;
          x = 0;
          do
          :: x < N ->
             if
             :: status[x] == RUNNING && (first(x) == i || second(x) == i) && !seen[x] -> seen[x] = 1
             :: else
             fi;
             x++
          :: else -> break
          od;
          i++
       :: i < N && seen[i] != 1 -> i++
       :: else -> break
       od;
#ifdef SHORT_CIRCLES_ONLY
       break;
#endif
       j++
    :: else -> break
    od;
    flag = seen[y];
#ifdef SHORT_CIRCLES_ONLY
    flag = (y == b || parent[b] == y || first(y) == b || second(y) == b);
#endif
#ifdef NO_CIRCLE_CHECK
    flag = (y == b);
#endif
    i = 0;
    do :: i < MOST -> seen[i] = 0; i++ :: else -> break od;
    skip
}

/* ------------------------------------------------------------------ branches end, and are stopped */

/* It has ended, with its token or without: who waited for it waits no longer. */
inline ended(b)
{
    status[b] = ENDED;
    flag = false;
    i = 0;
    do
    :: i < N -> flag = flag || (parent[i] == parent[b] && is_live(i)); i++
    :: else -> break
    od;
    j = 0;
    do
    :: j <= 2 * N ->
       x = (j < 2 * N -> j : 2 * parent[b]);  /* the block around it comes last */
       if
       :: (j < 2 * N && does[x] == b) ||
          (j == 2 * N && parent[b] != NONE && !flag && does[x] == JOIN) -> end_wait(x / 2, x)
       :: else
       fi;
       j++
    :: else -> break
    od;
    flag = false
}

inline stop(b)
{
    if
    :: status[b] == QUEUED || status[b] == GRANTED ->  /* then its place finds out later */
       told[b] = true;
       if
       :: status[b] == QUEUED -> waiting[root[pool[b]]]--; status[b] = ENDED; unblock(root[pool[b]])
       :: else
       fi;
       ended(b)
    :: status[b] == RUNNING ->
       told[b] = true;
       if
#ifdef STOPPED_QUEUES
       :: entry[b] -> leave_line(b)
#else
       :: entry[b] -> leave_line(b); force(b)
#endif
       :: else
       fi
    :: else
    fi
}

inline stop_step(b)
{
    cut[b] = true;
    p = 0;
    do
    :: p < N ->
       if
       :: (parent[p] == b || (b == N && parent[p] == NONE)) && !told[p] -> stop(p)
       :: else
       fi;
       p++
    :: else -> break
    od;
    skip
}

/* Its token goes to its heir, to the best of its own step, or to whoever is next. */
inline pass_on(b)
{
    swapped = false;
    if
#ifdef BORROWERS_UNCHECKED
    :: plain[root[pool[b]]] && used[pool[b]] <= cap[pool[b]] ->
#else
    :: plain[root[pool[b]]] && !borrowers[b] && used[pool[b]] <= cap[pool[b]] ->
#endif
       if
       :: heir != NONE && pool[heir] == pool[b] ->
          d_step { leave_line(heir); token[b] = false; token[heir] = true; wake(heir) };
          swapped = true
       :: heir == NONE && waiting[pool[b]] ->
          d_step { release(b) };
          find(pool[b]);
          if
          :: best != NONE && status[best] == QUEUED && parent[best] == parent[b] ->
             d_step { lend(best); best = 0 };
             swapped = true
          :: else
          fi
       :: else
       fi
    :: else
    fi;
    if
    :: swapped
    :: else ->
       d_step {
           if :: token[b] -> release(b) :: else fi;
           if
#ifdef HEIR_UNCHECKED
           :: heir != NONE -> lend(heir)
#else
           :: heir != NONE && weight[b] >= weight[heir] && in_chain(b, pool[heir]) && fits_chain(heir) ->
              lend(heir)
#endif
           :: else
           fi;
           look[root[pool[b]]] = true
       }
    fi;
    swapped = false
}

inline end_branch(b)
{
    if :: entry[b] -> leave_line(b); unblock(root[pool[b]]) :: else fi;
    wake(b);
    heir = (parent[b] != NONE && is_parked(parent[b]) -> parent[b] : NONE);
    ended(b)
}

/* ------------------------------------------------------------------ the processes */

#define may_act(t) (status[b] == RUNNING && does[t] == FREE)
#define may_wait_for(y) (y < N && y != b && is_live(y))
#define is_new_child(c) (parent[c] == b && status[c] == NEW && c < N)
#define has_new_children of_five(is_new_child)

inline submit(b)
{
    status[b] = QUEUED;
    added(b);
    if :: used[root[pool[b]]] < cap[root[pool[b]]] -> kicked[root[pool[b]]] = true :: else fi
}

inline submit_children(b)
{
    p = 0;
    do
    :: p < N ->
       if
       :: (parent[p] == b || (b == N && parent[p] == NONE)) && status[p] == NEW -> submit(p)
       :: else
       fi;
       p++
    :: else -> break
    od;
    skip
}

/* The first task of a branch is its function, the second one that this has started. */
proctype Task(byte b; byte t)
{
    bool is_function = (t == 2 * b);

end:
    do
    :: atomic {
        if
        :: is_function && status[b] == GRANTED -> status[b] = RUNNING

#ifdef ONE_BY_ONE
        :: is_function && status[b] == NEW && !cut[step_of(b)] &&
           (parent[b] == NONE || (status[parent[b]] == RUNNING && first(parent[b]) == FREE)) ->
           d_step { submit(b) }
#else
        :: is_function && may_act(t) && !cut[b] && has_new_children ->
           d_step { submit_children(b) }
#endif

        :: is_function && may_act(t) && has_children_out ->
           d_step { begin_wait(b); does[t] = JOIN }

        :: may_act(t) && waits && of_five(may_wait_for) ->
           if
           :: may_wait_for(0) -> target = 0
           :: may_wait_for(1) -> target = 1
           :: may_wait_for(2) -> target = 2
           :: may_wait_for(3) -> target = 3
           :: may_wait_for(4) -> target = 4
           fi;
           d_step {
#ifndef ENDLESS_WAITS
               waits--;
#endif
               check_no_circle(b, target);
               if
               :: flag  /* RuntimeError */
               :: else -> begin_wait(b); does[t] = target
               fi;
               flag = false;
               target = 0
           }

           /* A wait is cut short by a scope of the user's own, or as the branch was told to stop. */
        :: does[t] < MOST && (cuts || told[b]) ->
           d_step {
               if :: !told[b] -> cuts-- :: else fi;
               end_wait(b, t)
           }

        :: is_function && stops && is_live(b) && !told[b] -> d_step { stops--; stop(b) }

           /* So is the step in it: by itself, or as the branch around it was told to stop. */
        :: is_function && status[b] == RUNNING && has_children_out && !cut[b] &&
           (stops || told[b]) ->
           d_step {
               if :: !told[b] -> stops-- :: else fi;
               stop_step(b)
           }

        :: is_function && status[b] == ENDED && token[b] ->  /* stopped before it began */
           has_left = true;
           heir = NONE

        :: is_function && may_act(t) && !has_children_out ->
           d_step { end_branch(b) };
           look_around();
           has_left = token[b];
           if :: heir != NONE && !entry[heir] -> heir = NONE :: else fi
        fi;
        if :: has_left -> pass_on(b) :: else fi;
        has_left = false;
        heir = 0;
        look_around()
       }
    od
}

/* The host, at its next checkpoint. */
proctype Host()
{
end:
    do
    :: atomic {
        if
        :: kicked[0] -> look[0] = true
        :: kicked[1] -> look[1] = true
        :: kicked[2] -> look[2] = true
        :: stops && !cut[N] -> d_step { stops--; stop_step(N) }
        fi;
        look_around()
       }
    od
}

/* Spin's message is the text of what is asserted: so that is a name, of what is false. */
proctype Watch()
{
    bool cap_is_kept;
#ifndef OUTSIDE_ONLY
    bool books_are_right, who_runs_has_a_token, who_waits_holds_none, work_is_conserved, resumers_are_first;
#endif

end:
    if
    :: atomic { cap_is_passed -> assert(cap_is_kept) }
#ifndef OUTSIDE_ONLY
    :: atomic { books_are_wrong -> assert(books_are_right) }
    :: atomic { runs_without_token -> assert(who_runs_has_a_token) }
    :: atomic { holds_and_waits -> assert(who_waits_holds_none) }
    :: atomic { is_left_waiting -> assert(work_is_conserved) }
    :: atomic { resumer_is_passed -> assert(resumers_are_first) }
#endif
    fi
}

/* ------------------------------------------------------------------ the choice of a program */

#define depth(b) \
    (parent[b] == NONE -> 1 : (parent[parent[b]] == NONE -> 2 : \
        (parent[parent[parent[b]]] == NONE -> 3 : 4)))

/* The numbers of branches are arbitrary: parents in ascending order stand for all others. */
#define may_be_in(b, k, given) \
    ((given == ANY || given == k) && b > k && depth(k) < LEVELS && \
     (parent[b - 1] == NONE || parent[b - 1] <= k))

inline choose_parent(b, given)
{
    if
    :: (given == ANY || given == NONE) && parent[b - 1] == NONE -> parent[b] = NONE
    :: may_be_in(b, 0, given) -> parent[b] = 0
    :: may_be_in(b, 1, given) -> parent[b] = 1
    :: may_be_in(b, 2, given) -> parent[b] = 2
    :: may_be_in(b, 3, given) -> parent[b] = 3
    fi
}

inline choose_pool(b)
{
    if
    :: b > 0 && parent[b] == parent[b - 1] -> pool[b] = pool[b - 1]  /* of the same step */
    :: else -> select_up_to(pool[b], 0, POOLS - 1)
    fi
}

inline select_up_to(n, least, most)
{
    n = least;
    do :: n < most -> n++ :: break od
}

inline choose_up(p)
{
    select_up_to(up[p], 0, p)  /* a sub-cap, or at last a root */
}

init
{
    byte b;

    atomic {
        cap[0] = 1; cap[1] = 1; cap[2] = 1;
        up[1] = 1; up[2] = 2;
        select_up_to(cap[0], 1, CAP);
#if POOLS > 1
        select_up_to(cap[1], 1, CAP);
        choose_up(1);
#endif
#if POOLS > 2
        select_up_to(cap[2], 1, CAP);
        choose_up(2);
#endif
        root[1] = up[1];
        if :: up[2] == 1 -> root[2] = up[1] :: else -> root[2] = up[2] fi;
        b = 0;
        do
        :: b < MOST ->
           parent[b] = NONE;
           does[2 * b] = FREE;
           does[2 * b + 1] = FREE;
           status[b] = ENDED;
           b++
        :: else -> break
        od;
        plain[0] = true;
        plain[1] = up[1] == 1;
        plain[2] = up[2] == 2;
        b = 0;
        do
        :: b < N ->
           status[b] = NEW;
           if
           :: b == 1 -> choose_parent(1, P1)
           :: b == 2 -> choose_parent(2, P2)
           :: b == 3 -> choose_parent(3, P3)
           :: b == 4 -> choose_parent(4, P4)
           :: else
           fi;
           choose_pool(b);
           select_up_to(weight[b], 1, WEIGHT);
           b++
        :: else -> break
        od;
        b = 0;
#ifndef ONE_BY_ONE
        d_step { submit_children(N) };
#endif
        do
        :: b < N ->
           run Task(b, 2 * b);
#ifdef AUX
           run Task(b, 2 * b + 1);
#endif
           b++
        :: else -> break
        od;
        b = 0;
        run Host();
        run Watch()
    };
    all_has_ended;
    assert(!used[0] && !used[1] && !used[2]);
    assert(!waiting[0] && !waiting[1] && !waiting[2] && !resumers)
}
