//! No decoder is confused by foreign bytes: see `millrace_engine::fuzz::smoke`.

#[test]
fn no_decoder_is_confused_by_foreign_bytes() {
    millrace_engine::fuzz::smoke::run(millrace_net::fuzz::targets());
}
