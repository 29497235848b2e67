def sgd_step(w, g, v, rate, momentum, decay):
    v_new = momentum * v + (g + decay * w)
    return w - rate * v_new, v_new
