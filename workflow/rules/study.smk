rule link:
    # A run's folder is whole: what several runs share is in each of them, as hard links.
    input:
        lambda w: PLANS[w.run].place(w.result),
    output:
        directory("results/{run}/{result}"),
    log:
        "results/{run}/logs/link/{result}.log",
    wildcard_constraints:
        run=any_of(STUDY.runs),
        result=any_of(STUDY.linked),
    localrule: True
    message:
        "{output} is {input}"
    run:
        link_folder(Path(input[0]), Path(output[0]))


rule compare:
    input:
        summaries=expand("results/{run}/report/summary.json", run=STUDY.runs),
        sources=plan.sources("compare"),
    output:
        report(
            STUDY.page,
            caption="../report/page.rst",
            category="Results",
        ),
    log:
        f"{STUDY.results}/logs/compare.log",
    params:
        runs=[run_plan.results for run_plan in STUDY.runs.values()],
        out=subpath(output[0], parent=True),
    message:
        "Comparing the runs"
    shell:
        "r1track --log {log} report --out {params.out} --compare {params.runs} > /dev/null"
