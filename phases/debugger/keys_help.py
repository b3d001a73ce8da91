"""What each key does, for the help of the screens."""

_COMMON = """\
s         step: the next phase runs; one that failed is tried again
r  p      run until a breakpoint or the end; pause at the next boundary
b         back a step
← →       walk the timeline; PgUp PgDn ten steps, Home End all the way
k  K      set a breakpoint (phase, guard or condition); take one out
f  Tab  c fork: a second run with the same past; the next run; close it
=         this run beside another, with their first difference
w  l      save a snapshot; load one as another run
g  y  m   send a signal; answer a run that waits; make an edit
e         why the run failed, whole
d         dark or light
:         any command of the list below
?  q      this help; quit
"""
_MOUSE = """
The mouse: a click on the timeline goes to that step, one on a phase
sets a breakpoint before it or takes it out"""
_PAST = """

A step taken in the past forgets what was recorded ahead of it;
walking the timeline does not.
"""
ANY = f"""\
{_COMMON}\
v         the whole context
1 to 4    context, guards, signals, breakpoints, where not all fit
{_MOUSE}.{_PAST}"""
GENERATION = f"""\
{_COMMON}\
n         next: go on until one more token has been checked
x  i      force the next token; choose it among the candidates: ↑ ↓ Enter
t  a      change the temperature; append text
v         the whole text
1 to 6    candidates, guards, buffers, breakpoints, context, signals
{_MOUSE},
and one on a candidate asks whether it is to come next.{_PAST}"""
