//! The commands besides `serve`, a file each.

pub(crate) mod doctor;
