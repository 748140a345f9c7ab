//! Sizes as people write them.

use std::fmt;
use std::str::FromStr;

use parse_size::{Config, Error};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::backend::size_text;

/// A size in bytes. As text with K, M, G or T, or KiB and so on, for powers of 1024; with KB, MB, GB or TB for powers of 1000.
/// That is the convention of dd(1) and truncate(1); QEMU knows the first letters alone. Fractions and lower case are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The B makes the difference: 10M is 10 MiB, and 10MB is 10,000,000 bytes.
        let units = if text.ends_with(['b', 'B']) {
            Config::new().with_decimal()
        } else {
            Config::new().with_binary()
        };
        units.parse_size(text).map(Self).map_err(|error| match error {
            Error::PosOverflow => "give less than 2^64 bytes, such as 10G".into(),
            _ => "give bytes, or a number with K, M, G or T (powers of 1024), or KB, MB, GB or TB (powers of 1000): 10G"
                .into(),
        })
    }
}

/// In the largest unit of which it is a multiple.
impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&size_text(self.0))
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "give a number of bytes, or a text such as \"10G\"")]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(Self(bytes)),
            Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_unless_a_b_says_1000_and_do_not_wrap() {
        for (text, bytes) in [
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("3MiB", 3 << 20),
            ("3Mi", 3 << 20),
            ("3mib", 3 << 20),
            ("2G", 2 << 30),
            ("2g", 2 << 30),
            ("1T", 1 << 40),
            ("1.5G", 3 << 29),
            ("10kB", 10_000),
            ("10MB", 10_000_000),
            ("1.5gb", 1_500_000_000),
            ("1TB", 1_000_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for text in ["", "G", "-1", "1.5.5G", "1X", "99999999999999T", "1G1", "ten"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!([Size(5 << 20), Size(1000), Size(0)].map(|size| size.to_string()), ["5M", "1000", "0"]);
    }
}
