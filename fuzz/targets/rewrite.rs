//! xds-bridge's rewrite of xDS v2 into v3, on the wire: the first byte picks the kind of resource, the rest is what Consul sent. No
//! message makes the rewrite panic, and what it returns is a message again, with the same name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use xds_bridge::convert;
use xds_bridge::resource::Kind;
use xds_bridge::wire::{self, Field, Malformed};

const KINDS: [Kind; 4] = [Kind::Cluster, Kind::Endpoint, Kind::Listener, Kind::Route];

/// The values of field 1, which holds the name in all kinds of resources.
fn names(message: &[u8]) -> Result<Vec<Vec<u8>>, Malformed> {
    let named = |field: Result<Field<'_>, Malformed>| match field {
        Ok(field) if field.number == 1 => Some(field.bytes().map(<[u8]>::to_vec)),
        Ok(_) => None,
        Err(error) => Some(Err(error)),
    };
    wire::fields(message).filter_map(named).collect()
}

fuzz_target!(|input: &[u8]| {
    let [kind, v2 @ ..] = input else { return };
    let untouched = wire::rewrite(v2, |field, out| {
        out.extend_from_slice(field.raw);
        Ok(())
    });
    if let Ok(untouched) = untouched {
        assert_eq!(untouched, v2, "a rewrite that changes nothing");
    }
    if let Ok(resource) = convert::resource(KINDS[usize::from(*kind) % KINDS.len()], v2) {
        let names_before = names(v2).expect("what was converted is a message");
        assert_eq!(names(&resource.body), Ok(names_before), "what comes out is a message with the same name");
    }
});
