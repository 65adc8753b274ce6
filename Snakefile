# One command from data to report: `snakemake --cores all`. config.yaml says what to run.
import atexit
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from r1track import failures, plan, study
from r1track.core import config as configuration
from r1track.core.cards import present
from r1track.core.errors import UserError
from r1track.core.files import write_json
from r1track.core.folders import link_folder, locked
from r1track.study import any_of

# The rules run `r1track` from the environment that runs Snakemake, activated or not.
os.environ.update(PATH=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
# Read here, not by Snakemake, which takes what our reader refuses, and adds the `sets` of two files.
try:
    FILES = configuration.workflow_files(
        workflow.overwrite_configfiles, Path(workflow.basedir)
    )
    CHANGES = [
        configuration.parse_change(text, "--config")
        for text in workflow.config_settings.config_args
    ]
    STUDY = study.make_study(configuration.read_layers(FILES, CHANGES))
except UserError as error:
    sys.exit(f"error: {error}")

# Results are made in the folder of their run or, in a study of several runs, in shared ones: the wildcard `home`.
PLANS = STUDY.plans
STALE = {}  # see the rule `settings`
for run_plan in PLANS.values():
    changes = plan.stale(run_plan)
    STALE |= changes
    if changes and workflow.is_main_process:
        print(
            f"Changed since {run_plan.results} was made:",
            *dict.fromkeys(sum(changes.values(), [])),
            sep="\n  ",
            file=sys.stderr,
        )

DOWNLOADS = dict.fromkeys(
    name
    for run_plan in STUDY.runs.values()
    for name in plan.downloads(run_plan.settings)
)
if DOWNLOADS and workflow.is_main_process:
    print(
        "To be downloaded; `r1track fetch` does it beforehand, `r1track doctor --online` checks it:",
        *DOWNLOADS,
        sep="\n  ",
        file=sys.stderr,
    )

# With `--resources gpu=N`, N jobs run at once on the cards of this machine (core/cards.py), and share its cores.
gpu = workflow.global_resources.get("gpu")
CARDS = (gpu.value if gpu else None) or 1
CORES = max(1, workflow.cores // CARDS)
# Cards of a job with a model: here it waits for none where there is none, and a job that is sent away gets one. Asked
# for each job, because the executor is not known yet when this file is read.
cards_of = lambda wildcards: int(bool(present()) or not workflow.local_exec)

BEGAN = time.time()
LOCKS = ExitStack()
atexit.register(LOCKS.close)
shell.prefix(failures.SHELL_PREFIX)


# The image of the Dockerfile, in the working directory, with `--sdm apptainer` alone (docs/cluster.md).
container: "r1track.sif"


# In place of Snakemake's own lock, which stays after a kill until somebody removes it.
onstart:
    try:
        for folder in STUDY.folders:
            LOCKS.enter_context(locked(Path(folder)))
            # What a stage that the user must mend leaves: a retry does not repeat it, but this start does.
            for file in Path(folder, "logs").rglob("*.failed"):
                file.unlink()
    except UserError as error:
        sys.exit(f"error: {error}")
    failures.pass_on_sigterm()


# At exit, so that the summary or the failures stand below Snakemake's own messages.
onsuccess:
    atexit.register(failures.show_end, STUDY.summary, STUDY.folders, BEGAN)


onerror:
    atexit.register(failures.show_end, STUDY.summary, STUDY.folders, BEGAN)


wildcard_constraints:
    run=any_of(PLANS),
    home=any_of(STUDY.makers),
    stage=any_of(configuration.STAGE_FILES),
    arm=any_of(arm for run_plan in PLANS.values() for arm in run_plan.arms),
    model=any_of(model for run_plan in PLANS.values() for model in run_plan.models),
    set=any_of(name for run_plan in PLANS.values() for name in run_plan.sets),


localrules:
    all,
    settings,
    gate,


rule all:
    default_target: True
    input:
        [run_plan.scores + run_plan.submissions for run_plan in STUDY.runs.values()],
        expand("results/{run}/report/index.html", run=STUDY.runs),
        [
            f"{run_plan.results}/vqa/kept"
            for run_plan in STUDY.runs.values()
            if run_plan.trains
        ],
        STUDY.page or [],


include: "workflow/rules/settings.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/training.smk"
include: "workflow/rules/tracking.smk"
include: "workflow/rules/ability.smk"
include: "workflow/rules/reporting.smk"


if STUDY.page:

    include: "workflow/rules/study.smk"
