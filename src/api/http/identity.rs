//! Who asks, and whether it is the same request again.

use xxhash_rust::xxh3::xxh3_64;

use crate::command::ID_MIN;

/// Why the headers of a request name nobody.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Cid: '{0}' is not a command's number: expected an integer from 0 to 9223372036854775807")]
pub struct IdentityError(pub String);

/// The client and the command's id that `Id` and `Cid` stand for: a request with the same pair is the same command, and is
/// executed once. `None` if either is missing or `Id` names no client, which are requests of Paxi's tools: then each request is
/// a command of its own. They send an empty `Id`, or with `-id` a replica's name, and count from 1 in every process.
///
/// Clients of a replica are numbers: an `Id` is hashed to one. The ids of a client begin with
/// [`ID_MIN`](crate::command::ID_MIN), a `Cid` may be 0.
///
/// # Errors
/// If `Cid` is not a number.
pub fn identity(id: Option<&[u8]>, cid: Option<&[u8]>) -> Result<Option<(u64, u64)>, IdentityError> {
    let Some(cid) = cid else { return Ok(None) };
    let number = std::str::from_utf8(cid).ok().and_then(|text| text.trim().parse::<i64>().ok());
    let Some(number) = number.and_then(|number| u64::try_from(number).ok()) else {
        return Err(IdentityError(String::from_utf8_lossy(cid).chars().take(40).collect()));
    };
    let client = id.filter(|id| !id.is_empty() && !is_replica(id)).map(|id| xxh3_64(id).max(1));
    Ok(client.map(|client| (client, number + ID_MIN)))
}

/// Whether an `Id` is a replica's name as Paxi reads it: `ZONE.NODE`, two numbers.
fn is_replica(id: &[u8]) -> bool {
    let is_number = |text: &[u8]| !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let mut parts = id.trim_ascii().splitn(2, |byte| *byte == b'.');
    parts.by_ref().take(2).filter(|part| is_number(part)).count() == 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_a_client_and_a_command() {
        let of = |id: &str, cid: &str| identity(Some(id.as_bytes()), Some(cid.as_bytes())).unwrap();
        assert_eq!(of("a.1", "5"), of("a.1", "5"));
        assert_ne!(of("a.1", "5"), of("a.2", "5"));
        assert_eq!(of("a.1", "0").unwrap().1, 1);
        assert_eq!(of("a.1", "9223372036854775807").unwrap().1, 1 << 63);
        for client in ["1", "1.", ".1", "1.1.1", "1.a", "-1.1", "1,1", "1.1 a", "+1.1"] {
            assert!(of(client, "5").is_some(), "{client:?} names a client");
        }
        for replica in ["1.1", "12.345", " 1.1 ", "0.0", "99999999999999999999.1"] {
            assert_eq!(of(replica, "5"), None, "{replica:?} names a replica, and each of its processes counts from 1");
        }
        assert_eq!(of("", "5"), None, "Paxi's tools send an empty Id");
        assert_eq!(identity(None, Some(b"5")), Ok(None));
        assert_eq!(identity(Some(b"a"), None), Ok(None));
        for wrong in ["", "x", "-1", "1.5", "9223372036854775808", "\u{ff}"] {
            assert!(identity(Some(b"a"), Some(wrong.as_bytes())).is_err(), "{wrong:?} was taken");
        }
    }
}
