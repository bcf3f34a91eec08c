"""Small folders of images and annotations; some modules have a `write` of their own."""

import pytest
from PIL import Image
from reference.process import PyTorch


@pytest.fixture
def write(tmp_path):
    """Writes files by path: images of 20 x 40 for image names, else a text or bytes."""

    def write(**files):
        for name, content in files.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            if content is Image:
                Image.new("RGB", (40, 20)).save(file)
            else:
                file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return tmp_path

    return write


@pytest.fixture(scope="session")
def torchvision():
    """A process in which torchvision can be imported, as `pytorch`; of its own, for transformers looks for it, too."""
    process = PyTorch()
    if reason := process.call("augmentations:missing"):
        process.close()
        pytest.skip(reason)
    yield process
    process.close()
