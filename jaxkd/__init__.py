"""Knowledge distillation and transfer learning in JAX."""
