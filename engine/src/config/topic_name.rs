//! Which names a topic may have.

/// Longest name: Kafka puts names into file names, with a suffix.
pub const TOPIC_NAME_BYTES_MAX: usize = 249;

/// Whether a topic may have this name: Kafka's `Topic.validate`.
pub fn check_topic_name(name: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    match name {
        "" => Err("it is empty".to_owned()),
        "." | ".." => Err(format!("'{name}' is not allowed")),
        _ if name.len() > TOPIC_NAME_BYTES_MAX => {
            Err(format!("it is {} bytes long, {TOPIC_NAME_BYTES_MAX} are allowed", name.len()))
        }
        _ if !name.bytes().all(legal) => {
            Err(format!("'{name}' has other characters than ASCII letters, digits, '.', '_' and '-'"))
        }
        _ => Ok(()),
    }
}
