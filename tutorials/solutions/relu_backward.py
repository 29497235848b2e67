def relu_backward(gy, x):
    return gy * (x > 0)
