//! net
pub mod group;
