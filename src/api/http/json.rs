//! Commands as JSON, the body that Paxi's clients send to `/`.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::Value;

/// A command from a JSON body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JsonCommand {
    /// The key: an integer in decimal digits, or the bytes of a string.
    pub key: Vec<u8>,
    /// The value to set; a read if `None`.
    pub value: Option<Vec<u8>>,
    /// Who asks; empty if nobody says.
    pub client: String,
    /// Its number for the command.
    pub command: Option<u64>,
}

/// Why a body is not a command.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0}; a command is {{\"Key\": 42, \"Value\": \"<base64>\", \"ClientID\": \"me\", \"CommandID\": 1}}, where all but Key may be left out"
)]
pub struct JsonError(String);

/// Reads a body. Names of fields are taken in any case, as Go does.
///
/// # Errors
/// Which field is wrong.
pub fn json_command(body: &[u8]) -> Result<JsonCommand, JsonError> {
    let wrong = |problem: String| JsonError(problem);
    let value: Value = serde_json::from_slice(body).map_err(|error| wrong(format!("the body is not JSON: {error}")))?;
    let Value::Object(fields) = value else { return Err(wrong("the body is JSON but no object".to_owned())) };
    let (mut key, mut command) =
        (None, JsonCommand { key: Vec::new(), value: None, client: String::new(), command: None });
    for (name, value) in fields {
        match (name.to_ascii_lowercase().as_str(), value) {
            ("key", Value::Number(number)) if !number.is_f64() => key = Some(number.to_string().into_bytes()),
            ("key", Value::String(text)) if !text.is_empty() => key = Some(text.into_bytes()),
            ("key", _) => return Err(wrong("Key must be an integer or a string that is not empty".to_owned())),
            ("value" | "clientid" | "commandid", Value::Null) => {}
            ("value", Value::String(text)) => {
                let bytes = BASE64_STANDARD.decode(text);
                command.value = Some(bytes.map_err(|error| wrong(format!("Value is not base64: {error}")))?);
            }
            ("value", _) => return Err(wrong("Value must be a string of base64".to_owned())),
            ("clientid", Value::String(text)) => command.client = text,
            ("clientid", _) => return Err(wrong("ClientID must be a string".to_owned())),
            ("commandid", Value::Number(number)) if number.is_u64() => command.command = number.as_u64(),
            ("commandid", _) => return Err(wrong("CommandID must be an integer from 0 on".to_owned())),
            _ => return Err(wrong(format!("there is no field {:?}", name.chars().take(40).collect::<String>()))),
        }
    }
    command.key = key.ok_or_else(|| wrong("Key is missing".to_owned()))?;
    Ok(command)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bodies_as_paxi_sends_them_and_ours() {
        let read = |text: &str| json_command(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        let paxi = read(r#"{"Key":42,"Value":"aGVsbG8=","ClientID":"1.1","CommandID":7}"#);
        let expected = JsonCommand {
            key: b"42".to_vec(),
            value: Some(b"hello".to_vec()),
            client: "1.1".to_owned(),
            command: Some(7),
        };
        assert_eq!(paxi, expected);
        let get = read(r#"{"Key":-1,"Value":null,"ClientID":"","CommandID":0}"#);
        assert_eq!((get.key.as_slice(), get.value, get.command), (b"-1".as_slice(), None, Some(0)));
        assert_eq!(read(r#"{"key":"a b","value":""}"#).value, Some(Vec::new()), "an empty value is a write");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, message) in [
            ("", "the body is not JSON"),
            ("[]", "no object"),
            ("{}", "Key is missing"),
            (r#"{"Key":1.5}"#, "Key must be an integer"),
            (r#"{"Key":""}"#, "Key must be an integer"),
            (r#"{"Key":1,"Value":5}"#, "Value must be a string of base64"),
            (r#"{"Key":1,"Value":"!"}"#, "Value is not base64"),
            (r#"{"Key":1,"ClientID":5}"#, "ClientID must be a string"),
            (r#"{"Key":1,"CommandID":-5}"#, "CommandID must be an integer from 0 on"),
            (r#"{"Key":1,"Valeu":"aa"}"#, "there is no field \"Valeu\""),
        ] {
            let error = json_command(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(message), "{text}: {error:?} does not say {message:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = json_command(&body);
        }

        #[test]
        fn nearly_right_bodies_are_read_without_a_panic(
            place in any::<prop::sample::Index>(), byte in any::<u8>(), cut in any::<prop::sample::Index>(),
        ) {
            let mut body = br#"{"Key":42,"Value":"aGVsbG8=","ClientID":"1.1","CommandID":7}"#.to_vec();
            let place = place.index(body.len());
            body[place] = byte;
            let _ = json_command(&body);
            let _ = json_command(&body[..cut.index(body.len())]);
        }
    }
}
