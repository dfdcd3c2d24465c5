//! What three nodes look like to clients of one of them.
