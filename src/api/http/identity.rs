//! Who asks, and whether it is the same request again.

use xxhash_rust::xxh3::xxh3_64;

use crate::command::ID_MIN;

/// Why the headers of a request name nobody.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("Cid: '{0}' is not a command's number: expected an integer from 0 to 9223372036854775807")]
pub struct IdentityError(pub String);

/// The client and the command's id that `Id` and `Cid` stand for: a request with the same pair is the same command, and is
/// executed once. `None` if either is missing or `Id` is empty, as Paxi's tools send it unless they are given an id: then
/// each request is a command of its own.
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
    let client = id.filter(|id| !id.is_empty()).map(|id| xxh3_64(id).max(1));
    Ok(client.map(|client| (client, number + ID_MIN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_a_client_and_a_command() {
        let of = |id: &str, cid: &str| identity(Some(id.as_bytes()), Some(cid.as_bytes())).unwrap();
        assert_eq!(of("1.1", "5"), of("1.1", "5"));
        assert_ne!(of("1.1", "5"), of("1.2", "5"));
        assert_eq!(of("1.1", "0").unwrap().1, 1);
        assert_eq!(of("1.1", "9223372036854775807").unwrap().1, 1 << 63);
        assert_eq!(of("", "5"), None, "Paxi's tools send an empty Id");
        assert_eq!(identity(None, Some(b"5")), Ok(None));
        assert_eq!(identity(Some(b"1.1"), None), Ok(None));
        for wrong in ["", "x", "-1", "1.5", "9223372036854775808", "\u{ff}"] {
            assert!(identity(Some(b"a"), Some(wrong.as_bytes())).is_err(), "{wrong:?} was taken");
        }
    }
}
