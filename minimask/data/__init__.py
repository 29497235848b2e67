"""Images and their objects: COCO files, the packaged nuclei, generated pictures, augmentation, batches.

A dataset is anything with ``len(d)``, ``d[i] -> Sample``, ``class_names`` (label k is ``class_names[k - 1]``,
0 the background), ``category_ids`` and ``image_ids`` (the COCO ids), ``name``, ``notes``, ``describe(i)`` for
messages, ``image(i)`` for the image alone and ``coco_document()`` for pycocotools. It may have ``pixels(i)``,
the image at its own bit depth; ``outline(i)`` and ``load(i, window)``, so that only the part of an image that
is needed is decoded; ``digests()``, so that a resumed run sees whether the data have changed; and a
``skeleton``, the names of its keypoints. `CocoDataset` has all of them.

Imports only `errors`, `files` and `randomness`: data knows nothing of models. Begin with `sample.py`, which
says what an image with its objects is, then read `coco.py`.
"""

from minimask.data.augmentation import Augmentation, augment
from minimask.data.batches import Batches, Loader, repeats_by_size
from minimask.data.coco import CocoDataset, nuclei_sample, read_coco, shared_files
from minimask.data.figures import Figures
from minimask.data.images import read_image
from minimask.data.sample import Sample
from minimask.data.shapes import Shapes
from minimask.data.skeleton import Skeleton
