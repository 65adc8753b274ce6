rule report:
    input:
        config=f"{PLAN.results}/config/report.json",
        pairs=f"{PLAN.results}/pairs",
        adapters=expand(f"{PLAN.results}/adapters/{{arm}}", arm=PLAN.arms),
        models=expand(f"{PLAN.results}/models/{{arm}}", arm=PLAN.arms),
        tracks=PLAN.tracks,
        scores=PLAN.scores,
        verdict=f"{PLAN.results}/vqa/verdict.json",
        sources=plan.sources("report"),
    output:
        page=report(
            f"{PLAN.results}/report/index.html",
            caption="../report/page.rst",
            category="Results",
        ),
        summary=f"{PLAN.results}/report/summary.json",
        text=report(
            f"{PLAN.results}/report/summary.md",
            caption="../report/summary.rst",
            category="Results",
        ),
    log:
        f"{PLAN.results}/logs/report.log",
    benchmark:
        f"{PLAN.results}/benchmarks/report.tsv"
    conda:
        "../../environment.yml"
    threads: 1
    params:
        results=subpath(output.page, ancestor=2),
        out=subpath(output.page, parent=True),
    message:
        "Writing {output.page}"
    # The workflow prints the summary at its end (r1track/failures.py).
    shell:
        "r1track --log {log} report --results {params.results} --out {params.out} > /dev/null"
