"""MultiGrain: one network whose descriptor serves classes, instances and copies (Berman et al. 2019)."""

import contextlib
import hashlib
import inspect

import keras
import numpy as np
import tensorflow as tf

from mg_keras import layers
from mg_keras.layers import DistanceWeightedSampling, GeM, MarginLoss
from mg_keras.layers.gem import check_exponents
from mg_keras.models import batches, trunks
from mg_keras.models.trunks import IMAGENET_MEAN, IMAGENET_STD
from mg_keras.poolings import RMAC

# of `keras.Model.compile`: what this model has of its own
_OWN_IN_COMPILE = ("loss", "loss_weights", "metrics", "weighted_metrics")


@keras.saving.register_keras_serializable("mg_keras")
class MultiGrain(keras.Model):
    """A classification trunk topped with GeM pooling, trained for classes and instances at once.

    `embedding = GeM_p(trunk(image))`, `logits = W embedding + b`. Training adds to the cross-entropy a margin loss
    between augmented versions of the same image, so it needs no instance labels (sections 3.1 to 3.3, eqs. 1 to 5).

    Args:
        trunk: a name of `mg_keras.models.trunks.TRUNKS`, or a Keras model from the normalised image
            [B, H, W, 3] to a feature map [B, h, w, d] (any keras-hub backbone with a spatial output).
        num_classes: int, the number of classes C.
        pooling_exponent: float > 0, the training exponent p of GeM; 1 is average pooling.
        margin: float, alpha of the margin loss.
        initial_beta: float, where the learnt threshold beta of the margin loss starts.
        margin_normalization: `"pairs"` (the paper's) or `"active"` (the reference's); see `MarginLoss`.
        versions: int m >= 1, how many versions of an image a training batch holds at most (repeated augmentations).
        pixel_mean, pixel_std: 3 floats each, of RGB in 0-1; None: those of the named trunk
            (`mg_keras.models.trunks.normalization`), ImageNet's for any other.
        seed: int or None (which counts as 0), of the negative sampling in training. What a step draws depends on the
            seed, the number of the step and the replica alone, so a resumed run repeats it.
        weights: None for fresh weights; `"imagenet"`, or what else `mg_keras.pretrained.initialize` takes, such as a
            run's folder or a weights file. The classifier is taken over where it has `num_classes` classes.
        trainable_exponent: bool, whether p is learnt, with the rate of the weights and without their decay; it stays at
            0.1 or above. An optimiser's own decay, as AdamW's, has to be told:
            `optimizer.exclude_from_weight_decay(var_names=["pooling_exponent"])`.

    Call arguments:
        images: RGB in 0-255, float or uint8, [B, H, W, 3], any H and W. Normalisation is the model's own.
        p_star: None (the training exponent), a scalar, or one value an image [B].
        training: bool.

    Returns:
        A dict of float32 tensors, whatever the dtype policy: `embedding` [B, d], as pooled (not normalised), and
        `logits` [B, C].

    Raises:
        ValueError: an argument is out of range, or the trunk is no network from images to one feature map.
        UserError: the trunk's name is unknown, or `weights` can't be had or are another network's.

    Example:

    >>> model = mg_keras.MultiGrain("resnet18", num_classes=10)
    >>> model(np.zeros((2, 96, 128, 3), "uint8"), p_star=4.0)["embedding"].shape
    TensorShape([2, 512])
    """

    def __init__(
        self,
        trunk,
        num_classes,
        pooling_exponent=3.0,
        margin=0.2,
        initial_beta=1.2,
        margin_normalization="pairs",
        versions=3,
        pixel_mean=None,
        pixel_std=None,
        seed=None,
        weights=None,
        trainable_exponent=False,
        **kwargs,
    ):
        # under a mixed policy Keras would round pixels and p* to half precision on their way in
        super().__init__(autocast=False, **kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, received {num_classes}")
        if versions < 1:
            raise ValueError(f"versions must be at least 1, received {versions}")
        if weights is not None and not isinstance(trunk, str):
            raise ValueError(f"weights are for a trunk by name, received {weights!r} with the trunk {trunk!r}")
        mean, std = trunks.normalization(trunk) if isinstance(trunk, str) else (IMAGENET_MEAN, IMAGENET_STD)
        pixel_mean = mean if pixel_mean is None else pixel_mean
        pixel_std = std if pixel_std is None else pixel_std
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            if len(values) != 3:
                raise ValueError(f"{name} must hold one value for each of R, G and B, received {values}")
        if min(pixel_std) <= 0:
            raise ValueError(f"pixel_std must be > 0, received {pixel_std}")
        self.trunk = trunks.build(trunk, dtype=self.dtype_policy) if isinstance(trunk, str) else trunk
        shape = _output_shape(self.trunk)
        self.num_classes = num_classes
        self.versions = versions
        self.pixel_mean = tuple(float(value) for value in pixel_mean)
        self.pixel_std = tuple(float(value) for value in pixel_std)
        self.seed = seed
        self.pool = GeM(pooling_exponent, trainable_exponent=trainable_exponent, name="pool")
        # logits and losses must not be computed in half precision
        self.classifier = keras.layers.Dense(num_classes, dtype="float32", name="classifier")
        self.margin_loss = MarginLoss(margin, initial_beta, margin_normalization, name="margin_loss")
        self.sampling = DistanceWeightedSampling(max_positives=versions - 1 or None, seed=seed, name="sampling")
        self.embedding_dimension = shape[-1]
        self.classifier.build((None, self.embedding_dimension))
        self.pool.build(shape)
        self.margin_loss.build((None, self.embedding_dimension))
        self.sampling.build((None, self.embedding_dimension))
        self.built = True
        if weights is not None:
            # it builds on this module
            from mg_keras import pretrained

            pretrained.initialize(self, weights, trunk)

    @property
    def pixel_scaling(self):
        """(scale, offset), NumPy float32 [3] each: normalised is `images * scale + offset`, of RGB in 0-255."""
        mean, std = np.float32(self.pixel_mean), np.float32(self.pixel_std)
        return 1 / (255 * std), -mean / std

    def normalize(self, images):
        """RGB in 0-255, float or uint8, [B, H, W, 3] -> the float32 values that the trunk takes, the same shape.

        Raises:
            ValueError: the last dimension is not 3.
        """
        if images.shape[-1] != 3:
            # broadcasting would take a grey channel for three
            raise ValueError(f"images must be RGB, [B, H, W, 3], received shape {tuple(images.shape)}")
        scale, offset = self.pixel_scaling
        return keras.ops.cast(images, "float32") * scale + offset

    def __call__(self, images, *args, **kwargs):
        """`call`, in which Keras would bury an error of the arguments among a dozen lines.

        Raises:
            ValueError: images of another shape than the trunk takes, or a `p_star` that is at hand and not > 0.
        """
        self._check_images(images)
        check_exponents(args[0] if args else kwargs.get("p_star"))
        return super().__call__(images, *args, **kwargs)

    def _check_images(self, images):
        shape = getattr(images, "shape", None)
        if shape is None or getattr(shape, "rank", 0) is None:
            return
        if len(shape) != 4 or shape[-1] not in (3, None):
            raise ValueError(f"images must be RGB, [B, H, W, 3], received shape {tuple(shape)}")
        wanted = self.trunk.input_shape[1:3]
        if any(None not in pair and pair[0] != pair[1] for pair in zip(shape[1:3], wanted, strict=True)):
            raise ValueError(
                f"this trunk takes images of {_by(wanted)} pixels alone, received {_by(shape[1:3])}: build it for "
                "inputs (None, None, 3) to take any"
            )

    def compute_output_shape(self, input_shape):
        """Of `embedding` and `logits`."""
        return {
            "embedding": (input_shape[0], self.embedding_dimension),
            "logits": (input_shape[0], self.num_classes),
        }

    def compute_output_spec(self, *args, **kwargs):
        """Traced: from the shapes alone Keras would take both for the policy's half precision."""
        return super(keras.layers.Layer, self).compute_output_spec(*args, **kwargs)

    def call(self, images, p_star=None, training=False):
        """See the class."""
        features = self.trunk(self.normalize(images), training=training)
        embedding = self.pool(features, p_star=p_star)
        return {"embedding": embedding, "logits": self.classifier(embedding)}

    def describe(self, images, poolings):
        """The embeddings of images by several poolings, the trunk run once for all; a network of `mg_keras.embedding`.

        Args:
            images: RGB in 0-255, float or uint8, [B, H, W, 3], any H and W.
            poolings: tuple of exponents p* > 0 of GeM, `RMAC`, or None for the training exponent.

        Returns:
            float32 [P, B, d], as pooled (not normalised).
        """
        features = self.trunk(self.normalize(images), training=False)
        return tf.stack(
            [
                layers.RMAC()(features) if pooling == RMAC else self.pool(features, p_star=pooling)
                for pooling in poolings
            ]
        )

    def classify(self, embeddings):
        """Class logits, NumPy float32 [N, C], of embeddings [N, d] as `describe` gives them. Rows of NaN stay NaN."""
        kernel, bias = (np.asarray(weight) for weight in self.classifier.weights)
        return embeddings @ kernel + bias

    def fingerprint(self):
        """A str that is equal for networks that describe images alike: a hash of its weights and normalisation."""
        variables = [*self.trunk.variables, *self.pool.variables]
        settings = (self.pixel_mean, self.pixel_std, self.pool.epsilon, self.trunk.compute_dtype)
        digest = hashlib.sha256(repr((settings, [variable.shape for variable in variables])).encode())
        for variable in variables:
            digest.update(np.ascontiguousarray(variable))
        return digest.hexdigest()

    def to_torch_state_dict(self):
        """The weights as NumPy arrays under the names of the authors' network: `pretrained.to_torch_state_dict`."""
        # it builds on this module
        from mg_keras import pretrained

        return pretrained.to_torch_state_dict(self)

    def compile(
        self,
        optimizer="sgd",
        beta_optimizer=None,
        classification_weight=0.5,
        weight_decay=0.0,
        accumulation_steps=1,
        jit_compile=False,
        trunk_rate=1.0,
        class_weights=None,
        run_eagerly=False,
        steps_per_execution=1,
        **refused,
    ):
        """Sets how the model is trained.

        The losses and the metrics are the model's own: Keras's `loss`, `loss_weights`, `metrics` and `weighted_metrics`
        are refused.

        Args:
            optimizer: of the weights (trunk and classifier), as `keras.Model.compile` takes it. Keras's callbacks
                change the rate of this one alone.
            beta_optimizer: of beta alone; None takes SGD with rate 0.1 and momentum 0.9 (section 4.1).
            classification_weight: lambda in [0, 1]: 1 is plain cross-entropy (then nothing is sampled).
            weight_decay: float >= 0, times the weight is **added to the gradient** (L2, as in the paper; Keras's own
                `SGD(weight_decay=...)` is decoupled and ten times weaker at momentum 0.9). Never applied to beta.
            accumulation_steps: int k: the replica's batch is k parts of whole RA groups, passed one after the other,
                their gradients averaged before the one update. Sampling stays within a part.
            jit_compile: compile the forward and backward pass with XLA. With classification_weight 1 and no dropout
                the updates are those without it; XLA's random generator is another, so negatives and dropout masks
                drawn from the same seed differ. Tried on one CPU, and under `MirroredStrategy` on two logical ones:
                there the updates are right too, but the first steps can stall for tens of seconds on busy cores.
                `"auto"` is False.
            trunk_rate: float > 0, times the trunk's gradients, their decay included: with SGD that is its learning rate
                beside the classifier's. For trunks that were trained before.
            class_weights: C floats >= 0, times the cross-entropy of a training image of that class
                (`mg_keras.training.class_balance`); None: 1 each. Evaluation knows nothing of them.
            run_eagerly: bool, step by step in Python, to look into.
            steps_per_execution: int >= 1, steps that `fit` and `evaluate` take between callbacks; above 1 on one
                replica only.

        Raises:
            ValueError: a value is out of range, an argument or a kind of optimiser has no effect here, or the model
                computes in float16, which needs a scaled loss (train in bfloat16 instead).
        """
        _refuse_arguments(refused)
        jit_compile = jit_compile is True
        if not 0.0 <= classification_weight <= 1.0:
            raise ValueError(f"classification_weight must lie in [0, 1], received {classification_weight}")
        if classification_weight < 1.0 and self.versions < 2:
            raise ValueError(
                f"classification_weight {classification_weight} < 1 needs positive pairs, that is versions >= 2, "
                f"received versions={self.versions}"
            )
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, received {accumulation_steps}")
        if weight_decay < 0:
            raise ValueError(f"weight_decay must be at least 0, received {weight_decay}")
        if trunk_rate <= 0:
            raise ValueError(f"trunk_rate must be greater than 0, received {trunk_rate}")
        if steps_per_execution < 1:
            raise ValueError(f"steps_per_execution must be at least 1, received {steps_per_execution}")
        if steps_per_execution > 1 and self.distribute_strategy.num_replicas_in_sync > 1:
            raise ValueError(
                f"steps_per_execution {steps_per_execution} is for one replica, Keras's loop fails on several: take 1"
            )
        if jit_compile and run_eagerly:
            raise ValueError("jit_compile and run_eagerly exclude each other: take one")
        if "float16" in (self.compute_dtype, self.trunk.compute_dtype):
            raise ValueError("training in float16 needs a scaled loss and is not offered: take mixed_bfloat16")
        optimizer = keras.optimizers.get(optimizer)
        _check_optimizer(optimizer, trunk_rate)
        super().compile(
            optimizer=optimizer, jit_compile=False, run_eagerly=run_eagerly, steps_per_execution=steps_per_execution
        )
        self.beta_optimizer = keras.optimizers.get(beta_optimizer or keras.optimizers.SGD(0.1, momentum=0.9))
        self.classification_weight = classification_weight
        self.weight_decay = weight_decay
        self.accumulation_steps = accumulation_steps
        self.trunk_rate = trunk_rate
        self._class_weights = None
        if class_weights is not None:
            self._class_weights = batches.check_class_weights(class_weights, self.num_classes)
        self._with_xla = jit_compile
        # XLA takes the part that is mere computation: updates and reductions across replicas stay outside
        self._gradients = tf.function(self._part_gradients, jit_compile=True) if jit_compile else self._part_gradients
        self._trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "classification_loss", "retrieval_loss", "beta", "active_share", "top1", "top5")
        }
        self.optimizer.build(self.network_variables)
        self.beta_optimizer.build([self.margin_loss.beta])

    def get_compile_config(self):
        """What `compile` was given: a saved model comes back ready to train on."""
        if not self.compiled:
            return {}
        return keras.saving.serialize_keras_object(
            {
                "optimizer": self.optimizer,
                "beta_optimizer": self.beta_optimizer,
                "classification_weight": self.classification_weight,
                "weight_decay": self.weight_decay,
                "accumulation_steps": self.accumulation_steps,
                "jit_compile": self._with_xla,
                "trunk_rate": self.trunk_rate,
                "class_weights": None if self._class_weights is None else self._class_weights.tolist(),
                "run_eagerly": self.run_eagerly,
                "steps_per_execution": self.steps_per_execution,
            }
        )

    def compile_from_config(self, config):
        """Compiles with what `get_compile_config` gave."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    @property
    def network_variables(self):
        """The trainable weights of the trunk, the pooling and the classifier: all but beta."""
        return self.trunk.trainable_variables + self.pool.trainable_variables + self.classifier.trainable_variables

    @property
    def state_variables(self):
        """All that decides the model's answers and its next step: weights, moving statistics, beta, random states."""
        parts = (self.trunk, self.pool, self.classifier, self.margin_loss, self.sampling)
        return [variable for part in parts for variable in part.variables]

    @property
    def metrics(self):
        """The running means of the epoch: losses, beta, share of active triplets, top-1 and top-5."""
        return list(getattr(self, "_trackers", {}).values())

    def _joint_loss(self, images, labels, instance_ids, weights, seed):
        """The joint loss (equation 5) of one part of a replica's batch, and what is worth plotting."""
        outputs = self(images, training=True)
        classification = self._classification(labels, outputs["logits"], weights)
        retrieval_loss = active_share = tf.zeros(())
        if self.classification_weight < 1.0:
            unit = tf.math.l2_normalize(outputs["embedding"], axis=-1, epsilon=1e-12)
            triplets = self.sampling(unit, instance_ids, seed=seed)
            retrieval_loss, active_share = self.margin_loss.from_rows(unit, triplets)
        weight = self.classification_weight
        loss = weight * classification["classification_loss"] + (1.0 - weight) * retrieval_loss
        return loss, {"loss": loss, "retrieval_loss": retrieval_loss, "active_share": active_share, **classification}

    def _classification(self, labels, logits, weights):
        """Cross-entropy (section 3.2), top-1 and top-5, each the mean over the images.

        Weights are factors of the cross-entropies, whose sum is divided by the number of images as without them.
        """
        cross_entropy = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        if weights is not None:
            cross_entropy *= weights
        accuracies = {
            f"top{k}": tf.reduce_mean(tf.cast(tf.math.in_top_k(labels, logits, min(k, self.num_classes)), tf.float32))
            for k in (1, 5)
        }
        return {"classification_loss": tf.reduce_mean(cross_entropy), **accuracies}

    def _part_gradients(self, images, labels, instance_ids, weights, seed):
        """The gradients of the joint loss, beta's last (None where nothing depends on a variable), and its values."""
        with tf.GradientTape() as tape:
            loss, values = self._joint_loss(images, labels, instance_ids, weights, seed)
        variables = [*self.network_variables, self.margin_loss.beta]
        return tape.gradient(loss, [variable.value for variable in variables]), values

    def train_step(self, data):
        """One update from `(images [B, H, W, 3], labels [B], instance_ids [B])`: a replica's whole RA groups.

        A further part, floats [B], weighs the images' cross-entropies (not the retrieval loss). With a
        classification_weight of 1 the ids may be missing: `(images, labels)` or `(images, labels, weights)`.

        Raises:
            ValueError: the batch has other parts.
            InvalidArgumentError: a label is not a whole number from 0 to `num_classes` - 1; nothing is updated.
        """
        batch = self._checked(batches.unpack(data))
        if self.classification_weight < 1.0:
            batches.need_instances(batch, self._with_xla)
        else:
            batch = batch._replace(instance_ids=None)
        batch = batch._replace(weights=self._image_weights(batch))
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        gradients, values = self._accumulate(batch)
        # Keras 3 sums gradients over replicas; the loss is the mean over them
        *gradients, beta_gradient = [None if gradient is None else gradient / replicas for gradient in gradients]
        updates = [pair for pair in zip(gradients, self.network_variables, strict=True) if pair[0] is not None]
        if self.weight_decay:
            decay = self.weight_decay / replicas
            undecayed = {id(variable) for variable in self.pool.trainable_variables}
            updates = [
                (gradient, variable)
                if id(variable) in undecayed
                else (gradient + decay * tf.cast(variable.value, gradient.dtype), variable)
                for gradient, variable in updates
            ]
        if self.trunk_rate != 1.0:
            trunk = {id(variable) for variable in self.trunk.trainable_variables}
            updates = [
                (gradient * self.trunk_rate if id(variable) in trunk else gradient, variable)
                for gradient, variable in updates
            ]
        self.optimizer.apply_gradients(updates)
        if beta_gradient is not None:
            self.beta_optimizer.apply_gradients([(beta_gradient, self.margin_loss.beta)])
        values["beta"] = tf.convert_to_tensor(self.margin_loss.beta)
        return self._track(values)

    def _checked(self, batch):
        self._check_images(batch.images)
        return batches.with_class_numbers(batch, self.num_classes)

    def _image_weights(self, batch):
        """float32 [B], what the images' cross-entropies are multiplied by in training; None: 1."""
        given = None if batch.weights is None else tf.cast(batch.weights, tf.float32)
        if self._class_weights is None:
            return given
        of_class = tf.gather(self._class_weights, batch.labels)
        return of_class if given is None else of_class * given

    def _sampling_seed(self, part):
        """What a part's draws depend on: step, replica and part alone, so that a resumed run repeats them."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int32)
        return tf.stack([step + 1_000_003 * (self.seed or 0) % (1 << 30), replica * self.accumulation_steps + part])

    def _accumulate(self, batch):
        """Mean gradients and values over the parts of a replica's batch."""
        count = self.accumulation_steps
        if count == 1:
            return self._gradients(*batch, self._sampling_seed(0))
        totals, sums = None, None
        split = [[None] * count if value is None else tf.split(value, count) for value in batch]
        for number, part in enumerate(zip(*split, strict=True)):
            # one part after the other: run together they would need the memory that accumulation is there to save
            waits = [total for total in totals or [] if total is not None]
            with tf.control_dependencies(waits):
                part = [None if value is None else tf.identity(value) for value in part]  # noqa: PLW2901
                gradients, values = self._gradients(*part, self._sampling_seed(number))
            if totals is None:
                totals, sums = gradients, values
            else:
                totals = [None if new is None else old + new for old, new in zip(totals, gradients, strict=True)]
                sums = {name: sums[name] + value for name, value in values.items()}
        scale = 1.0 / count
        return (
            [None if total is None else total * scale for total in totals],
            {name: value * scale for name, value in sums.items()},
        )

    def test_step(self, data):
        """Cross-entropy and accuracies of `(images, labels)`, at the training exponent.

        Weights as a further part multiply the cross-entropies; instance ids are of no account here.
        """
        batch = self._checked(batches.unpack(data))
        weights = None if batch.weights is None else tf.cast(batch.weights, tf.float32)
        logits = self(batch.images, training=False)["logits"]
        values = self._classification(batch.labels, logits, weights)
        # the last batch may be smaller: its images count as much as the others'
        return self._track({"loss": values["classification_loss"], **values}, weight=tf.shape(logits)[0])

    def _track(self, values, weight=None):
        for name, value in values.items():
            self._trackers[name].update_state(value, sample_weight=weight)
        return {name: self._trackers[name].result() for name in values}

    def fit(self, *args, **kwargs):
        """Keras's `fit`, on a dataset of the batches that `train_step` takes.

        `sample_weight` and `class_weight` multiply the cross-entropies; `class_weight` stands in for the
        `class_weights` of `compile` meanwhile. Arrays have no instance ids: they are for a classification_weight of 1.

        Raises:
            ValueError: labels or weights are not what they should be; those of arrays are looked at beforehand.
        """
        given = self._given(super().fit, args, kwargs)
        validation = given.get("validation_data")
        if isinstance(validation, (tuple, list)) and len(validation) > 1:
            images, labels, *weights = validation
            batches.check_given_labels(labels, self.num_classes)
            given["validation_data"] = (images, labels, *map(batches.as_weights, weights))
        with self._classes_weighed(given.pop("class_weight", None)), batches.plain_errors():
            return super().fit(**given)

    def evaluate(self, *args, **kwargs):
        """Keras's `evaluate`, on what `test_step` takes; `sample_weight` multiplies the cross-entropies.

        Raises:
            ValueError: labels or weights are not what they should be.
        """
        given = self._given(super().evaluate, args, kwargs)
        with batches.plain_errors():
            return super().evaluate(**given)

    def train_on_batch(self, *args, **kwargs):
        """Keras's `train_on_batch`, for a classification_weight of 1; with ids call `train_step`."""
        given = self._given(super().train_on_batch, args, kwargs)
        with batches.plain_errors():
            return super().train_on_batch(**given)

    def test_on_batch(self, *args, **kwargs):
        """Keras's `test_on_batch`."""
        given = self._given(super().test_on_batch, args, kwargs)
        with batches.plain_errors():
            return super().test_on_batch(**given)

    def _given(self, method, args, kwargs):
        """The arguments of one of Keras's loops by name, labels checked and `sample_weight` made floats."""
        given = dict(inspect.signature(method).bind(*args, **kwargs).arguments)
        given.update(given.pop("kwargs", {}))
        if given.get("y") is not None:
            batches.check_given_labels(given["y"], self.num_classes)
        if given.get("sample_weight") is not None:
            given["sample_weight"] = batches.as_weights(given["sample_weight"])
        return given

    @contextlib.contextmanager
    def _classes_weighed(self, class_weight):
        """Trains with Keras's `class_weight` meanwhile."""
        if class_weight is None:
            yield
            return
        before = self._class_weights
        # the step in use was made with other weights
        self._class_weights, self.train_function = batches.class_weights_from(class_weight, self.num_classes), None
        try:
            yield
        finally:
            self._class_weights, self.train_function = before, None

    def export(self, filepath, format="tf_saved_model", verbose=None, input_signature=None, **kwargs):
        """Keras's `export`: a SavedModel from `images`, float32 [B, H, W, 3] in 0-255, to what `call` gives for them.

        What `export/run.py` writes has p* an image, the whitening, classes of stored descriptors and photos as bytes
        besides.
        """
        if input_signature is None:
            shape = (None, *self.trunk.input_shape[1:3], 3)
            input_signature = [keras.InputSpec("float32", shape, name="images")]
        return super().export(filepath, format, verbose, input_signature, **kwargs)

    def quantize(self, mode=None, config=None, **kwargs):
        """Refused: Keras would quantise the classifier alone.

        Raises:
            ValueError: always.
        """
        raise ValueError("a MultiGrain is not quantised: export it with `export/run.py --precision bfloat16` instead")

    def get_config(self):
        """Everything the constructor was given."""
        return {
            **super().get_config(),
            "trunk": keras.saving.serialize_keras_object(self.trunk),
            "num_classes": self.num_classes,
            "pooling_exponent": self.pool.initial_pooling_exponent,
            "margin": self.margin_loss.margin,
            "initial_beta": self.margin_loss.initial_beta,
            "margin_normalization": self.margin_loss.normalization,
            "versions": self.versions,
            "pixel_mean": self.pixel_mean,
            "pixel_std": self.pixel_std,
            "seed": self.seed,
            "trainable_exponent": self.pool.trainable_exponent,
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the model, the trunk from its own configuration."""
        return cls(**{**config, "trunk": keras.saving.deserialize_keras_object(config["trunk"])})


def _output_shape(trunk):
    """(batch, h, w, d) of a trunk, once it is seen to be one."""
    shape = getattr(trunk, "output_shape", None)
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] is None:
        raise ValueError(
            "a trunk is a name or a built Keras model with one output [B, h, w, d] of known d, "
            f"received {trunk!r} with output shape {shape}"
        )
    images = trunk.input_shape
    if not isinstance(images, tuple) or len(images) != 4 or images[-1] != 3:
        raise ValueError(f"a trunk takes normalised images [B, H, W, 3], received one whose input shape is {images}")
    return shape


def _refuse_arguments(arguments):
    """Raises the error of arguments that `compile` doesn't take."""
    for name, value in arguments.items():
        if name not in _OWN_IN_COMPILE:
            raise TypeError(f"compile has no argument {name!r}")
        if value is not None:
            raise ValueError(f"the losses and the metrics are the model's own: leave {name} out of compile")


def _check_optimizer(optimizer, trunk_rate):
    """Raises a ValueError if something that is asked for would have no effect, or end in an error after training."""
    if getattr(optimizer, "use_ema", False):
        raise ValueError("an optimizer with use_ema averages other variables than Keras puts back: leave it out")
    clipped = [name for name in ("clipnorm", "clipvalue") if getattr(optimizer, name, None) is not None]
    if trunk_rate != 1.0 and (clipped or not isinstance(optimizer, keras.optimizers.SGD)):
        kind = type(optimizer).__name__ + "".join(f" with {name}" for name in clipped)
        raise ValueError(
            f"trunk_rate {trunk_rate} needs keras.optimizers.SGD: {kind} takes the scale out of a gradient, and the "
            "rate with it"
        )


def _by(sides):
    """As people write sizes: 64x64, ? where it is not known."""
    return "x".join("?" if side is None else str(side) for side in sides)
