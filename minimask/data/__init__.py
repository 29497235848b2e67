"""Images and their objects: COCO files, the packaged nuclei, generated shapes, augmentation, batches.

A dataset is anything with ``len(d)``, ``d[i] -> Sample``, ``class_names`` (label k is ``class_names[k - 1]``,
0 the background), ``category_ids`` and ``image_ids`` (the COCO ids), ``name``, ``notes``, ``describe(i)`` for
messages, ``image(i)`` for the image alone and ``coco_document()`` for pycocotools.
"""

from .augmentation import Augmentation, augment
from .batches import Batches, Loader
from .coco import CocoDataset, nuclei_sample, read_coco
from .images import read_image
from .sample import Sample
from .shapes import Shapes
