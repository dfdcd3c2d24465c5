//! Kafka's error codes by name.

use kafka_protocol::ResponseError;

/// What an answer without an outcome is taken for.
pub(crate) const UNKNOWN_SERVER_ERROR: i16 = -1;
/// Kafka calls it retriable, but somebody who misspelt a name should not wait for it.
pub const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
/// Of a request in a version that the broker does not serve.
pub(crate) const UNSUPPORTED_VERSION: i16 = 35;

/// Kafka's name of an error code, as its documentation writes it.
pub fn error_code_name(code: i16) -> String {
    match ResponseError::try_from_code(code) {
        None => "NONE".to_owned(),
        Some(ResponseError::Unknown(code)) => format!("error code {code}"),
        Some(ResponseError::InvalidTopicException) => "INVALID_TOPIC_EXCEPTION".to_owned(),
        Some(error) => screaming(&error.to_string()),
    }
}

fn screaming(camel: &str) -> String {
    let mut name = String::new();
    for letter in camel.chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_have_the_names_of_the_documentation() {
        assert_eq!(error_code_name(0), "NONE");
        assert_eq!(error_code_name(3), "UNKNOWN_TOPIC_OR_PARTITION");
        assert_eq!(error_code_name(17), "INVALID_TOPIC_EXCEPTION");
        assert_eq!(error_code_name(-1), "UNKNOWN_SERVER_ERROR");
        assert_eq!(error_code_name(31_000), "error code 31000");
    }
}
