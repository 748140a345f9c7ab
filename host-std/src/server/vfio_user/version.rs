//! VERSION: what both sides can do, in JSON.

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use zerocopy::IntoBytes as _;

use super::protocol::{DATA_MAX, FDS_MAX, MAPPINGS_MAX, PAGE_BYTES, Version};

/// Our newest minor version of 0.
const MINOR: u16 = 1;

/// What a client said of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Agreed {
    /// Most bytes of data that it takes in a message.
    pub(super) data_max: usize,
}

#[derive(Debug, Default, Deserialize)]
struct Proposed {
    #[serde(default)]
    capabilities: Capabilities,
}

/// What we read of a client's capabilities; there may be others.
#[derive(Debug, Default, Deserialize)]
struct Capabilities {
    max_data_xfer_size: Option<u64>,
    #[serde(default)]
    write_multiple: bool,
}

#[derive(Serialize)]
struct Offered {
    capabilities: Ours,
}

#[derive(Serialize)]
struct Ours {
    max_msg_fds: usize,
    max_data_xfer_size: usize,
    max_dma_maps: usize,
    pgsizes: u64,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    write_multiple: bool,
}

/// What is agreed, and the body of the reply.
///
/// # Errors
/// OPNOTSUPP for another major version, INVAL for a text that is no such JSON.
pub(super) fn negotiate(version: Version, data: &[u8]) -> Result<(Agreed, Vec<u8>), Errno> {
    if version.major != 0 {
        return Err(Errno::OPNOTSUPP);
    }
    let proposed = match data {
        [] => Proposed::default(),
        [text @ .., 0] => proposal(text).map_err(|_| Errno::INVAL)?,
        _ => return Err(Errno::INVAL),
    };
    let Capabilities { max_data_xfer_size, write_multiple } = proposed.capabilities;
    let data_max = max_data_xfer_size.map_or(DATA_MAX, |max| max.min(DATA_MAX as u64) as usize);
    if data_max == 0 {
        return Err(Errno::INVAL);
    }
    let capabilities = Ours {
        max_msg_fds: FDS_MAX,
        max_data_xfer_size: DATA_MAX,
        max_dma_maps: MAPPINGS_MAX,
        pgsizes: PAGE_BYTES,
        write_multiple,
    };
    let text = serde_json::to_vec(&Offered { capabilities }).map_err(|_| Errno::NOMEM)?;
    let version = Version { major: 0, minor: version.minor.min(MINOR) };
    Ok((Agreed { data_max }, [version.as_bytes(), &text, &[0]].concat()))
}

/// An object: serde would take an array of its fields for one, too.
fn proposal(text: &[u8]) -> serde_json::Result<Proposed> {
    let object: serde_json::Map<_, _> = serde_json::from_slice(text)?;
    Proposed::deserialize(serde_json::Value::Object(object))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree(major: u16, minor: u16, data: &[u8]) -> Result<(usize, u16, String), Errno> {
        let (agreed, reply) = negotiate(Version { major, minor }, data)?;
        let text = String::from_utf8(reply[4..reply.len() - 1].to_vec()).unwrap();
        assert_eq!(reply.last(), Some(&0));
        Ok((agreed.data_max, u16::from_ne_bytes([reply[2], reply[3]]), text))
    }

    #[test]
    fn a_client_may_say_nothing_or_more_than_we_know() {
        let (data_max, minor, text) = agree(0, 0, b"").unwrap();
        assert_eq!((data_max, minor), (DATA_MAX, 0));
        assert!(!text.contains("write_multiple"), "{text}");
        let proposal = br#"{"capabilities":{"max_data_xfer_size":4096,"write_multiple":true,"migration":{"pgsize":4096}}}"#;
        let (data_max, minor, text) = agree(0, 9, &[proposal.as_slice(), &[0]].concat()).unwrap();
        assert_eq!((data_max, minor), (4096, 1));
        assert!(text.contains(r#""write_multiple":true"#) && text.contains(r#""max_msg_fds":16"#), "{text}");
    }

    #[test]
    fn another_version_and_a_text_that_is_no_json_are_refused() {
        assert_eq!(agree(1, 0, b""), Err(Errno::OPNOTSUPP));
        for text in [
            b"{}".as_slice(),
            b"{\0",
            b"\0",
            b"[]\0",
            b"{\"capabilities\":{\"max_data_xfer_size\":0}}\0",
            b"\xff\0",
        ] {
            assert_eq!(agree(0, 0, text), Err(Errno::INVAL), "{text:?}");
        }
    }
}
