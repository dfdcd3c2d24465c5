//! Reads the text of the whole project for the rules that no compiler knows. The rules are in `tests/rules/`.

pub mod items;
pub mod modules;
pub mod ratchet;
pub mod rooms;
pub mod token;
pub mod tree;
