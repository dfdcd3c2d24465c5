//! The table of APIs, and what a handler gets and gives.

mod call;
mod error_codes;
pub(crate) mod shape;
mod table;

pub(crate) use call::{Call, Context, Handling, Reply, Request, RequestHeader, Response, call, encode, encode_bytes};
pub(crate) use error_codes::ErrorCodes;
pub(crate) use table::{Api, OnDisconnect, find, place};
