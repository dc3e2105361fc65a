//! Addresses as Paxi's files write them: `tcp://10.0.0.1:1735`, `http://localhost:8080`.

use std::net::{IpAddr, SocketAddr};

/// A scheme, and what to know if it is used.
type Scheme = (&'static str, Option<&'static str>);

/// What `address` may say.
pub(super) const NATIVE: &[Scheme] = &[
    ("tcp", None),
    ("udp", Some("udp is taken as tcp: messages here are longer than a datagram, and are not to be lost")),
    (
        "chan",
        Some("chan is taken as tcp, on the addresses that are written; a cluster in one process is `wpaxos local`"),
    ),
];
/// What `http_address` may say.
pub(super) const HTTP: &[Scheme] = &[("http", None)];

/// An address that was written.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Written<'a> {
    text: &'a str,
    /// An IP address or a name.
    pub(super) host: &'a str,
    port: u16,
    /// What to know about its scheme.
    pub(super) note: Option<&'static str>,
}

impl<'a> Written<'a> {
    /// With one of these schemes, or without any, which stands for the first.
    pub(super) fn parse(text: &'a str, schemes: &[Scheme]) -> Result<Self, String> {
        let first = schemes[0].0;
        let wrong =
            |problem: &str| format!("'{text}' {problem}: expected {first}://HOST:PORT, as in {first}://10.0.0.1:8001");
        let (note, rest) = match text.split_once("://") {
            None => (None, text),
            Some((scheme, rest)) => match schemes.iter().find(|(known, _)| *known == scheme) {
                Some((_, note)) => (*note, rest),
                None => {
                    let known: Vec<&str> = schemes.iter().map(|(known, _)| *known).collect();
                    let problem =
                        format!("has the scheme {scheme}, which is not served here; {} is", known.join(" or "));
                    return Err(wrong(&problem));
                }
            },
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let port: u16 = port.parse().map_err(|_| wrong("has no port from 1 to 65535"))?;
        let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match inner {
            Some(host) => host,
            None if host.contains(':') => return Err(wrong("has an IPv6 address that does not stand in brackets")),
            None => host,
        };
        let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '.' | '-' | '_' | ':' | '%');
        if host.is_empty() || !host.chars().all(plain) {
            return Err(wrong("has no host; each node listens on one address here, not on every interface"));
        }
        Ok(Self { text, host, port, note })
    }

    /// The address, its host being at `ip`.
    pub(super) fn at(&self, ip: IpAddr) -> Result<SocketAddr, String> {
        match (self.port, ip.is_unspecified()) {
            (0, _) => Err(format!("'{}' has port 0, which nobody can dial", self.text)),
            (_, true) => Err(format!(
                "'{}' stands for every address, which nobody can dial: write the one at which the others reach the node",
                self.text
            )),
            _ => Ok(SocketAddr::new(ip, self.port)),
        }
    }
}
