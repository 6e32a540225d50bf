"""evenkeel's zoo in PyTorch: the same layers under the same state-dict names, with PyTorch's own initialisation.

    from torch_models import make_model
    model = make_model("cnn")            # or "mlp", "cnn-gap", "resnet20"; the sizes can be changed by keyword

A layer that feeds a batch norm has no bias: the norm subtracts it again. Used by torch_accuracy.py (same settings
as `evenkeel train`) and by make_golden.py (the committed golden files). Needs Debian's python3-torch.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Mlp(nn.Module):
    """fc1 - bn1 - relu - fc2 - bn2 - relu - fc3. Input: anything that flattens to [N, inputs]."""

    def __init__(self, inputs=784, widths=(512, 512), classes=10):
        super().__init__()
        self.fc1 = nn.Linear(inputs, widths[0], bias=False)
        self.bn1 = nn.BatchNorm1d(widths[0])
        self.fc2 = nn.Linear(widths[0], widths[1], bias=False)
        self.bn2 = nn.BatchNorm1d(widths[1])
        self.fc3 = nn.Linear(widths[1], classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.fc1(x.flatten(1))))
        x = F.relu(self.bn2(self.fc2(x)))
        return self.fc3(x)


def conv3x3(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class Cnn(nn.Module):
    """Three times conv3x3 - norm - relu - max-pool 2 (an odd last row or column is dropped), then flatten and fc."""

    def __init__(self, channels=(32, 64, 128), in_channels=1, size=28, classes=10):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels[0])
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.conv2 = conv3x3(channels[0], channels[1])
        self.bn2 = nn.BatchNorm2d(channels[1])
        self.conv3 = conv3x3(channels[1], channels[2])
        self.bn3 = nn.BatchNorm2d(channels[2])
        self.fc = nn.Linear(channels[2] * (size // 2 // 2 // 2) ** 2, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        return self.fc(x.flatten(1))


class CnnGap(nn.Module):
    """conv1 - bn1 - relu - conv2 - bn2 - relu - max-pool 2 - conv3 - bn3 - relu - global average pool - fc."""

    def __init__(self, channels=(32, 64, 128), in_channels=1, classes=10):
        super().__init__()
        self.conv1 = conv3x3(in_channels, channels[0])
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.conv2 = conv3x3(channels[0], channels[1])
        self.bn2 = nn.BatchNorm2d(channels[1])
        self.conv3 = conv3x3(channels[1], channels[2])
        self.bn3 = nn.BatchNorm2d(channels[2])
        self.fc = nn.Linear(channels[2], classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.conv3(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class BasicBlock(nn.Module):
    """relu(bn2(conv2(relu(bn1(conv1(x))))) + shortcut(x)).

    The shortcut has no parameters (option A of He et al. 2015): where the block halves the image or widens it, every
    second row and column is taken and zero channels are added, the same number before and after.
    """

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.extra = outputs - inputs

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.extra != 0:
            before = self.extra // 2
            x = F.pad(x[:, :, ::self.stride, ::self.stride], (0, 0, 0, 0, before, self.extra - before))
        return F.relu(y + x)


class CifarResNet(nn.Module):
    """conv1 - bn1 - relu - stages layer1, layer2, ... of basic blocks - global average pool - linear.

    blocks[i] blocks of widths[i] channels form layer(i+1); every stage but the first begins with stride 2.
    """

    def __init__(self, blocks=(3, 3, 3), widths=(16, 32, 64), in_channels=3, classes=10):
        super().__init__()
        self.conv1 = conv3x3(in_channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(blocks)
        inputs = widths[0]
        for i, (count, width) in enumerate(zip(blocks, widths)):
            stage = []
            for j in range(count):
                stage.append(BasicBlock(inputs, width, 2 if i > 0 and j == 0 else 1))
                inputs = width
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))


MODELS = {"mlp": Mlp, "cnn": Cnn, "cnn-gap": CnnGap, "resnet20": CifarResNet}


def make_model(name, **sizes):
    return MODELS[name](**sizes)


if __name__ == "__main__":
    for name in MODELS:
        model = make_model(name)
        count = sum(p.numel() for p in model.parameters())
        print(f"{name}: {count} parameters")
        for key, value in model.state_dict().items():
            print(f"  {key} {list(value.shape)}")
