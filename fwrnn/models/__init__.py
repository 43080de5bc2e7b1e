"""Networks: an encoder, a recurrent core and a head; what they are made of is in ``schema``."""
