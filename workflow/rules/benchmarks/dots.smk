rule benchmark_dots:
    input:
        CHECKOUT / "workflow/rules/benchmarks/Dots.tsv",
    output:
        R / "benchmarks/Dots.tsv",
    log:
        R / "logs/benchmarks/Dots.log",
    resources:
        **asks("small"),
    shell:
        "cp {input} {output} 2> {log}"
