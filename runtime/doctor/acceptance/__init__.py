"""`echovlm-accept`: prove on the target that a bundle computes, serves and performs as it should, and archive the proof."""
