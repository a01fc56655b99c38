from ._encoder import ConvEncoder as ConvEncoder
from ._field import ConvField as ConvField, InvariantField as InvariantField, MLPField as MLPField
