//! Which ports the master hands out: base port plus the node's position among the ids, as in Paxi.

use std::{collections::HashSet, net::SocketAddr};

use super::Place;
use crate::topology::NodeId;

/// What a replica asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Claim {
    pub(super) id: NodeId,
    /// Where its shards listen, one port after another.
    pub(super) native: Place,
    /// Where it serves HTTP; at the same IP, if there is HTTP at all, if `None`.
    pub(super) http: Option<Place>,
}

/// The ports that are handed out to those that name none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Bases {
    /// The first one of the first node's shards.
    pub(super) native: u16,
    /// That of the first node; nobody gets one if `None`.
    pub(super) http: Option<u16>,
}

/// A node of a [`crate::config::Template`].
pub(super) type Placed = (NodeId, SocketAddr, Option<SocketAddr>);

/// Gives every node its addresses. `claims` are in order of ids, so that it does not matter who came first. Ports that are
/// taken, by `others` or by a node that named one, are passed over.
pub(super) fn assign(
    claims: &[Claim],
    shards: u16,
    bases: Bases,
    others: &[SocketAddr],
) -> Result<Vec<Placed>, String> {
    let mut taken: HashSet<SocketAddr> = others.iter().copied().collect();
    let range = |place: SocketAddr, count: u16| {
        (0..count)
            .filter_map(move |step| place.port().checked_add(step))
            .map(move |port| SocketAddr::new(place.ip(), port))
    };
    for claim in claims {
        if let Some(port) = claim.native.port {
            taken.extend(range(SocketAddr::new(claim.native.ip, port), shards));
        }
        if let Some(Place { ip, port: Some(port) }) = claim.http {
            taken.insert(SocketAddr::new(ip, port));
        }
    }
    let mut free = |place: Place, base: u16, index: usize, count: u16| -> Result<SocketAddr, String> {
        if let Some(port) = place.port {
            return Ok(SocketAddr::new(place.ip, port));
        }
        let mut port = usize::from(base) + index * usize::from(count);
        loop {
            let last = port + usize::from(count) - 1;
            if last > usize::from(u16::MAX) {
                return Err(format!("no ports are left at {}: from {base} on they end above 65535", place.ip));
            }
            let found = SocketAddr::new(place.ip, port as u16);
            if range(found, count).all(|address| !taken.contains(&address)) {
                taken.extend(range(found, count));
                return Ok(found);
            }
            port += usize::from(count);
        }
    };
    let mut placed = Vec::with_capacity(claims.len());
    for (index, claim) in claims.iter().enumerate() {
        let native = free(claim.native, bases.native, index, shards)?;
        let beside = Place { ip: claim.native.ip, port: None };
        let http = match (claim.http, bases.http) {
            (Some(place), Some(base)) => Some(free(place, base, index, 1)?),
            (Some(place), None) => Some(free(place, super::HTTP_BASE_PORT, index, 1)?),
            (None, Some(base)) => Some(free(beside, base, index, 1)?),
            (None, None) => None,
        };
        placed.push((claim.id, native, http));
    }
    Ok(placed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASES: Bases = Bases { native: 1736, http: Some(8081) };

    fn claim(node: u8, native: &str) -> Claim {
        Claim { id: NodeId::new(1, node), native: native.parse().unwrap(), http: None }
    }

    fn assigned(claims: &[Claim], shards: u16, bases: Bases) -> Vec<(String, Option<String>)> {
        let others = ["10.0.0.1:1737".parse().unwrap()];
        let placed = assign(claims, shards, bases, &others).unwrap();
        placed.into_iter().map(|(_, native, http)| (native.to_string(), http.map(|http| http.to_string()))).collect()
    }

    #[test]
    fn ports_follow_from_the_order_of_ids_and_pass_over_what_is_taken() {
        let native =
            |placed: Vec<(String, Option<String>)>| placed.into_iter().map(|(native, _)| native).collect::<Vec<_>>();
        let claims = [claim(1, "10.0.0.1"), claim(2, "10.0.0.1"), claim(3, "10.0.0.2"), claim(4, "10.0.0.1:1739")];
        let placed = assigned(&claims, 1, BASES);
        assert_eq!(placed[2].1.as_deref(), Some("10.0.0.2:8083"));
        assert_eq!(native(placed), ["10.0.0.1:1736", "10.0.0.1:1738", "10.0.0.2:1738", "10.0.0.1:1739"]);
        let placed = native(assigned(&claims, 2, BASES));
        assert_eq!(placed, ["10.0.0.1:1742", "10.0.0.1:1744", "10.0.0.2:1740", "10.0.0.1:1739"]);
    }

    #[test]
    fn http_is_where_it_is_wanted() {
        let none = Bases { http: None, ..BASES };
        assert_eq!(assigned(&[claim(1, "10.0.0.9")], 1, none)[0].1, None);
        let wanted = Claim { http: Some("10.0.0.9".parse().unwrap()), ..claim(1, "10.0.0.9") };
        assert_eq!(assigned(&[wanted], 1, none)[0].1.as_deref(), Some("10.0.0.9:8081"));
        let named = Claim { http: Some("10.0.1.9:80".parse().unwrap()), ..claim(1, "10.0.0.9") };
        assert_eq!(assigned(&[named], 1, BASES)[0].1.as_deref(), Some("10.0.1.9:80"));
    }

    #[test]
    fn running_out_of_ports_is_said() {
        let high = Bases { native: 65535, http: None };
        assert_eq!(assign(&[claim(1, "10.0.0.1")], 1, high, &[]).unwrap()[0].1.port(), 65535);
        let error = assign(&[claim(1, "10.0.0.1")], 2, high, &[]).unwrap_err();
        assert!(error.contains("no ports are left at 10.0.0.1"), "{error}");
    }
}
