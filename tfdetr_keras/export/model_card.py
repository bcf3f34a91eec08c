"""A run's model card, which the Hugging Face hub shows and reads.

The head of the card is the hub's own metadata (`huggingface_hub.ModelCardData`); the rest is for people: data, AP,
curves, how to use it, and how it was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from port_weights.hub import is_hub_id
from tfdetr_keras.models.detector import Detector
from tfdetr_keras.training.markdown import escaped
from tfdetr_keras.training.run_folder import CURVES, PREDICTIONS, RunFolder, metric_tables, settings_in_words, table

TAGS = ("object-detection", "detr", "vision", "keras", "tensorflow", "tfdetr_keras")
HUB_METRICS = ("AP", "AP50", "AP75")  # that stand in the metadata


def model_card(
    run: RunFolder, model: Detector, repository: str, dataset: str | None = None, license: str | None = None
) -> str:
    """Return the card of a run's best model, as Markdown.

    Args:
        run: the finished run.
        model: its best model.
        repository: owner/name on the hub.
        dataset: name of the data; an id of the form owner/name becomes a link.
        license: of the model, as the hub spells it, e.g. `"apache-2.0"`.
    """
    from huggingface_hub import EvalResult, ModelCardData

    config, metrics = run.config(), run.metrics
    named = dataset or "the run's own validation images"
    results = [
        EvalResult(
            task_type="object-detection",
            dataset_type=dataset if dataset and is_hub_id(dataset) else "custom",
            dataset_name=named,
            dataset_split="validation",
            metric_type=name.lower(),
            metric_name=name,
            metric_value=round(metrics[name], 4),
        )
        for name in HUB_METRICS
        if name in metrics
    ]
    data = ModelCardData(
        model_name=repository.split("/")[-1],
        library_name="transformers",  # which loads the folder; so does this package
        pipeline_tag=_task(model),
        tags=list(TAGS),
        license=license,
        base_model=config["source"] if is_hub_id(config["source"]) else None,
        datasets=[dataset] if dataset and is_hub_id(dataset) else None,
        metrics=[name.lower() for name in HUB_METRICS] if results else None,
        eval_results=results or None,
    )
    lines = [
        "---",
        data.to_yaml().strip(),
        "---",
        "",
        f"# {repository.split('/')[-1]}",
        "",
        f"{_architecture(model)}, which finds: {escaped(', '.join(config['class_names']))}.",
        f"Fine-tuned from `{_source(config['source'])}` with tfdetr_keras; the weights are read by tfdetr_keras and by "
        "transformers.",
        "",
        *_picture(run, PREDICTIONS, "Predictions (solid) and true boxes (dashed) on validation images"),
        "## Use",
        "",
        *_use(repository, _task(model)),
        "## Data",
        "",
        *([f"Data set: {escaped(dataset)}.", ""] if dataset else []),
        *(f"- {name}: {text}" for name, text in config["counts"].items()),
        f"- classes: {len(config['class_names'])}",
        "",
        *_results(metrics),
        *_picture(run, CURVES, "Losses, AP and learning rate by epoch", "## Training"),
        *table(("setting", "value"), [[name, f"`{value}`"] for name, value in settings_in_words(config)]),
    ]
    return "\n".join(lines) + "\n"


def _architecture(model: Detector) -> str:
    return f"{model.title} over {model.config.network}, {model.count_params() / 1e6:.1f} million weights"


def _source(source: str) -> str:
    """Return the source without the folders of the machine that the model was trained on."""
    return source if is_hub_id(source) else source.replace("\\", "/").rstrip("/").split("/")[-1]


def _task(model: Detector) -> str:
    """Return the task's name for the hub and transformers' pipelines."""
    return "image-segmentation" if model.has_masks else "object-detection"


def _use(repository: str, task: str) -> Sequence[str]:
    return [
        "```python",
        "import tfdetr_keras as td",
        "",
        f'model = td.from_pretrained("{repository}")',
        'print(model.detect("photo.jpg"))',
        "```",
        "",
        "or, in PyTorch,",
        "",
        "```python",
        "from transformers import pipeline",
        "",
        f'find = pipeline("{task}", model="{repository}")',
        'print(find("photo.jpg"))',
        "```",
        "",
    ]


def _results(metrics: dict[str, Any]) -> list[str]:
    if not metrics:
        return ["## Results", "", "The run had no validation images: no AP was measured.", ""]
    return [
        "## Results",
        "",
        "COCO metrics on the validation images (−1: there are no such objects). The model is that of "
        f"epoch {metrics['epoch']}, chosen for its AP on the same images, which flatters it a little.",
        "",
        *metric_tables(metrics),
        "",
    ]


def _picture(run: RunFolder, name: str, title: str, heading: str | None = None) -> list[str]:
    lines = [heading, ""] if heading else []
    return lines + ([f"![{title}]({name})", ""] if (run.path / name).is_file() else [])
