def tape_backward(tape, output, gradient):
    gradients = {output: gradient}
    for call in reversed(tape):
        if call.output in gradients:  # else it does not lead to the output
            for name, g in zip(call.inputs, call.backward(gradients[call.output])):
                # a new sum, for g and what is there may be someone else's array
                gradients[name] = gradients[name] + g if name in gradients else g
    return gradients
