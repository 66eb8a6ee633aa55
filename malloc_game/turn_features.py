"""placeholder"""
import numpy as np
def turn_features(table):
    return np.zeros((table.num_items, 1))
