"""The tree of errors a caller may want to catch: each says what is wrong, where, and the way out."""


class K25Error(Exception):
    """Bad input or a broken promise; its message is one line: what, where, what to do."""


class StoreError(K25Error):
    """The object store refused or could not be reached."""


class ObjectNotFoundError(StoreError):
    """No object stands under the key."""


class ObjectExistsError(StoreError):
    """An object with other bytes stands under a key that is written once."""


class DatasetError(K25Error):
    """A dataset is unknown, or what was registered cannot be indexed."""


class ManifestError(K25Error):
    """A manifest is missing or does not describe the objects it was made from."""


class ObjectChangedError(ManifestError):
    """An object holds other bytes than when it was indexed: the run stops, nothing of it is masked or cached."""


class SampleError(K25Error):
    """One sample cannot be read or decoded; the loader masks it and counts it."""


class RecipeError(K25Error):
    """A recipe has an unknown key, a wrong value, or cannot be filled by its sources."""


class PlanError(K25Error):
    """A plan is unknown, too short, or not the one that a state names."""


class CheckpointError(K25Error):
    """A checkpoint is missing, incomplete, or made under another config or plan."""


class BadSampleBudgetError(K25Error):
    """A source has more unreadable samples than its budget allows; the message lists them."""


class RunError(K25Error):
    """A run is unknown, or what it logged does not agree with what it is asked to do."""


class LineageError(K25Error):
    """A sample, content id or checkpoint that is asked about is unknown."""
