# One command from data to report: `snakemake --cores all`. config.yaml says what to run.
import atexit
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from r1track import failures, plan
from r1track.core import config as configuration
from r1track.core.errors import UserError
from r1track.core.files import write_json
from r1track.core.folders import locked

# The rules run `r1track` from the environment that runs Snakemake, activated or not.
os.environ.update(PATH=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
# Read here, not by Snakemake, which takes what our reader refuses, and adds the `sets` of two files.
own = next(
    (
        file
        for file in (Path("config.yaml"), Path(workflow.basedir, "config.yaml"))
        if file.is_file()
    ),
    None,
)
try:
    FILES = [*([own] if own else []), *workflow.overwrite_configfiles]
    CHANGES = [
        configuration.parse_change(text, "--config")
        for text in workflow.config_settings.config_args
    ]
    PLAN = plan.make_plan(
        configuration.combine(configuration.read_layers(FILES, CHANGES))
    )
except UserError as error:
    sys.exit(f"error: {error}")

STALE = plan.stale(PLAN)  # see the rule `settings`
if STALE and workflow.is_main_process:
    print(
        f"Changed since {PLAN.results} was made:",
        *dict.fromkeys(sum(STALE.values(), [])),
        sep="\n  ",
        file=sys.stderr,
    )

if workflow.is_main_process and (DOWNLOADS := plan.downloads(PLAN.settings)):
    print(
        "To be downloaded; `r1track fetch` does it beforehand, `r1track doctor --online` checks it:",
        *DOWNLOADS,
        sep="\n  ",
        file=sys.stderr,
    )

BEGAN = time.time()
LOCK = ExitStack()
atexit.register(LOCK.close)
shell.prefix(failures.SHELL_PREFIX)


# In place of Snakemake's own lock, which stays after a kill until somebody removes it.
onstart:
    try:
        LOCK.enter_context(locked(Path(PLAN.results)))
    except UserError as error:
        sys.exit(f"error: {error}")


# At exit, so that the summary or the failures stand below Snakemake's own messages.
onsuccess:
    atexit.register(failures.show_end, PLAN.results, BEGAN)


onerror:
    atexit.register(failures.show_end, PLAN.results, BEGAN)


wildcard_constraints:
    stage="|".join(configuration.NEEDS),
    arm="|".join(PLAN.arms),
    model="|".join(PLAN.models),
    set="|".join(map(re.escape, PLAN.sets)),


localrules:
    all,
    settings,
    gate,


rule all:
    default_target: True
    input:
        PLAN.scores,
        PLAN.submissions,
        f"{PLAN.results}/vqa/verdict.json",
        f"{PLAN.results}/report/index.html",
        f"{PLAN.results}/vqa/kept",


include: "workflow/rules/settings.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/ability.smk"
include: "workflow/rules/reporting.smk"
