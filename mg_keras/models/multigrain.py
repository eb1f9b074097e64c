"""MultiGrain: one network whose descriptor serves classes, instances and copies (Berman et al. 2019)."""

import keras
import tensorflow as tf

from mg_keras.layers import DistanceWeightedSampling, GeM, MarginLoss
from mg_keras.models import trunks

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@keras.saving.register_keras_serializable("mg_keras")
class MultiGrain(keras.Model):
    """A classification trunk topped with GeM pooling, trained for classes and instances at once.

    `embedding = GeM_p(trunk(image))`, `logits = W embedding + b`. Training adds to the cross-entropy a margin loss
    between augmented versions of the same image, so it needs no instance labels (sections 3.1 to 3.3, eqs. 1 to 5).

    Args:
        trunk: a name of `mg_keras.models.trunks.TRUNKS`, or a Keras model from the normalised image
            [B, H, W, 3] to a feature map [B, h, w, C] (any keras-hub backbone with a spatial output).
        num_classes: int, the number of classes C.
        pooling_exponent: float > 0, the training exponent p of GeM; 1 is average pooling.
        margin: float, alpha of the margin loss.
        initial_beta: float, where the learnt threshold beta of the margin loss starts.
        margin_normalization: `"pairs"` (the paper's) or `"active"` (the reference's); see `MarginLoss`.
        versions: int m >= 1, how many versions of an image a training batch holds at most (repeated augmentations).
        pixel_mean, pixel_std: 3 floats each, of RGB in 0-1.
        seed: int or None, of the negative sampling.

    Call arguments:
        images: RGB in 0-255, float or uint8, [B, H, W, 3], any H and W. Normalisation is the model's own.
        p_star: None (the training exponent), a scalar, or one value an image [B].
        training: bool.

    Returns:
        A dict of float32 tensors: `embedding` [B, d], as pooled (not normalised), and `logits` [B, C].

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
        pixel_mean=IMAGENET_MEAN,
        pixel_std=IMAGENET_STD,
        seed=None,
        **kwargs,
    ):
        # under a mixed policy Keras would round pixels and p* to half precision on their way in
        super().__init__(autocast=False, **kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, received {num_classes}")
        if versions < 1:
            raise ValueError(f"versions must be at least 1, received {versions}")
        self.trunk = trunks.build(trunk) if isinstance(trunk, str) else trunk
        if len(self.trunk.output_shape) != 4:
            raise ValueError(f"a trunk's output must be [B, h, w, C], received shape {self.trunk.output_shape}")
        self.num_classes = num_classes
        self.versions = versions
        self.pixel_mean = tuple(float(value) for value in pixel_mean)
        self.pixel_std = tuple(float(value) for value in pixel_std)
        self.seed = seed
        self.pool = GeM(pooling_exponent, name="pool")
        # small networks of float32 parts: logits and losses must not be computed in half precision
        self.classifier = keras.layers.Dense(num_classes, dtype="float32", name="classifier")
        self.margin_loss = MarginLoss(margin, initial_beta, margin_normalization, name="margin_loss")
        self.sampling = DistanceWeightedSampling(max_positives=versions - 1 or None, seed=seed, name="sampling")
        self.embedding_dimension = self.trunk.output_shape[-1]
        self.classifier.build((None, self.embedding_dimension))
        self.pool.build(self.trunk.output_shape)
        self.margin_loss.build((None, self.embedding_dimension))
        self.built = True

    def normalize(self, images):
        """RGB in 0-255, float or uint8 -> the float32 values that the trunk takes."""
        scale = 1.0 / (255.0 * keras.ops.array(self.pixel_std, "float32"))
        offset = -keras.ops.array(self.pixel_mean, "float32") / keras.ops.array(self.pixel_std, "float32")
        return keras.ops.cast(images, "float32") * scale + offset

    def call(self, images, p_star=None, training=False):
        """See the class."""
        features = self.trunk(self.normalize(images), training=training)
        embedding = self.pool(features, p_star=p_star)
        return {"embedding": embedding, "logits": self.classifier(embedding)}

    def compile(
        self,
        optimizer="sgd",
        beta_optimizer=None,
        classification_weight=0.5,
        weight_decay=0.0,
        accumulation_steps=1,
        jit_compile=False,
        **kwargs,
    ):
        """Sets how the model is trained.

        Args:
            optimizer: of the weights (trunk and classifier).
            beta_optimizer: of beta alone; None takes SGD with rate 0.1 and momentum 0.9 (section 4.1).
            classification_weight: lambda in [0, 1]: 1 is plain cross-entropy (then nothing is sampled).
            weight_decay: float, times the weight is **added to the gradient** (L2, as in the paper; Keras's own
                `SGD(weight_decay=...)` is decoupled and ten times weaker at momentum 0.9). Never applied to beta.
            accumulation_steps: int k: the replica's batch is k parts of whole RA groups, passed one after the other,
                their gradients averaged before the one update. Sampling stays within a part.
            jit_compile: compile the forward and backward pass with XLA.
            **kwargs: of `keras.Model.compile`.

        Raises:
            ValueError: a value is out of range.
        """
        if not 0.0 <= classification_weight <= 1.0:
            raise ValueError(f"classification_weight must lie in [0, 1], received {classification_weight}")
        if classification_weight < 1.0 and self.versions < 2:
            raise ValueError(
                f"classification_weight {classification_weight} < 1 needs positive pairs, that is versions >= 2, "
                f"received versions={self.versions}"
            )
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, received {accumulation_steps}")
        super().compile(optimizer=optimizer, jit_compile=False, **kwargs)
        self.beta_optimizer = beta_optimizer or keras.optimizers.SGD(0.1, momentum=0.9)
        self.classification_weight = classification_weight
        self.weight_decay = weight_decay
        self.accumulation_steps = accumulation_steps
        # XLA takes the part that is pure computation: updates and reductions across replicas stay outside
        self._gradients = tf.function(self._part_gradients, jit_compile=True) if jit_compile else self._part_gradients
        self._trackers = {
            name: keras.metrics.Mean(name=name)
            for name in ("loss", "classification_loss", "retrieval_loss", "beta", "active_share", "top1", "top5")
        }
        self.optimizer.build(self.network_variables)
        self.beta_optimizer.build([self.margin_loss.beta])

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

    def _joint_loss(self, images, labels, instance_ids, seed):
        """The joint loss (equation 5) of one part of a replica's batch, and what is worth plotting."""
        outputs = self(images, training=True)
        cross_entropy = keras.losses.sparse_categorical_crossentropy(labels, outputs["logits"], from_logits=True)
        classification_loss = tf.reduce_mean(cross_entropy)
        retrieval_loss = active_share = tf.zeros(())
        if self.classification_weight < 1.0:
            unit = tf.math.l2_normalize(outputs["embedding"], axis=-1, epsilon=1e-12)
            triplets = self.sampling(unit, instance_ids, seed=seed)
            retrieval_loss, active_share = self.margin_loss.from_rows(unit, triplets)
        weight = self.classification_weight
        loss = weight * classification_loss + (1.0 - weight) * retrieval_loss
        return loss, {
            "loss": loss,
            "classification_loss": classification_loss,
            "retrieval_loss": retrieval_loss,
            "active_share": active_share,
            **self._accuracies(labels, outputs["logits"]),
        }

    def _accuracies(self, labels, logits):
        labels = tf.cast(labels, tf.int32)
        return {
            f"top{k}": tf.reduce_mean(tf.cast(tf.math.in_top_k(labels, logits, min(k, self.num_classes)), tf.float32))
            for k in (1, 5)
        }

    def _part_gradients(self, images, labels, instance_ids, seed):
        with tf.GradientTape() as tape:
            loss, values = self._joint_loss(images, labels, instance_ids, seed)
        variables = [*self.network_variables, self.margin_loss.beta]
        return tape.gradient(loss, [variable.value for variable in variables]), values

    def train_step(self, data):
        """One update from `(images [B, H, W, 3], labels [B], instance_ids [B])`: a replica's whole RA groups."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        gradients, values = self._accumulate(data)
        # Keras 3 sums gradients over replicas; the loss is the mean over them
        gradients = [None if gradient is None else gradient / replicas for gradient in gradients]
        *gradients, beta_gradient = gradients
        variables = self.network_variables
        if self.weight_decay:
            decay = self.weight_decay / replicas
            gradients = [
                gradient + decay * tf.cast(variable.value, gradient.dtype)
                for gradient, variable in zip(gradients, variables, strict=True)
            ]
        self.optimizer.apply_gradients(zip(gradients, variables, strict=True))
        if beta_gradient is not None:
            self.beta_optimizer.apply_gradients([(beta_gradient, self.margin_loss.beta)])
        values["beta"] = tf.convert_to_tensor(self.margin_loss.beta)
        return self._track(values)

    def _sampling_seed(self, part):
        """What a part's draws depend on: step, replica and part alone, so that a resumed run repeats them."""
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        step = tf.cast(tf.convert_to_tensor(self.optimizer.iterations), tf.int32)
        return tf.stack([step + 1_000_003 * (self.seed or 0) % (1 << 30), replica * self.accumulation_steps + part])

    def _accumulate(self, data):
        """Mean gradients and values over the parts of a replica's batch."""
        if self.accumulation_steps == 1:
            return self._gradients(*data, self._sampling_seed(0))
        totals, sums = None, None
        for number, part in enumerate(zip(*(tf.split(value, self.accumulation_steps) for value in data), strict=True)):
            # one part after the other: run together they would need the memory that accumulation is there to save
            waits = [total for total in totals or [] if total is not None]
            with tf.control_dependencies(waits):
                part = [tf.identity(value) for value in part]  # noqa: PLW2901
                gradients, values = self._gradients(*part, self._sampling_seed(number))
            if totals is None:
                totals, sums = gradients, values
            else:
                totals = [None if new is None else old + new for old, new in zip(totals, gradients, strict=True)]
                sums = {name: sums[name] + value for name, value in values.items()}
        scale = 1.0 / self.accumulation_steps
        return (
            [None if total is None else total * scale for total in totals],
            {name: value * scale for name, value in sums.items()},
        )

    def test_step(self, data):
        """Cross-entropy and accuracies of `(images, labels)`, at the training exponent."""
        images, labels = data[:2]
        logits = self(images, training=False)["logits"]
        loss = tf.reduce_mean(keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True))
        return self._track({"loss": loss, "classification_loss": loss, **self._accuracies(labels, logits)})

    def _track(self, values):
        for name, value in values.items():
            self._trackers[name].update_state(value)
        return {name: self._trackers[name].result() for name in values}

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
        }

    @classmethod
    def from_config(cls, config):
        """Rebuilds the model, the trunk from its own configuration."""
        config = dict(config)
        if not isinstance(config["trunk"], str):
            config["trunk"] = keras.saving.deserialize_keras_object(config["trunk"])
        return cls(**config)
