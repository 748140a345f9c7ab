//! Identity of a logical unit.

/// The identity of a logical unit: what INQUIRY and its pages 80h and 83h say. ASCII, padded with spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Config {
    /// T10 VENDOR IDENTIFICATION.
    pub vendor: [u8; 8],
    /// PRODUCT IDENTIFICATION.
    pub product: [u8; 16],
    /// PRODUCT REVISION LEVEL.
    pub revision: [u8; 4],
    /// PRODUCT SERIAL NUMBER; all spaces: none.
    pub serial: [u8; 20],
    /// NAA designator of page 83h, if the unit has a world-wide name. Its top four bits are the NAA type (SPC-4, NAA designator format).
    pub naa: Option<u64>,
    /// Whether the write cache is on after a reset, where the storage has a volatile one at all.
    pub write_cache: bool,
}

impl Config {
    /// An identity from text. What is too long is cut; what is not printable ASCII becomes a space (SPC-4, ASCII data field requirements).
    #[must_use]
    pub const fn new(vendor: &str, product: &str, revision: &str, serial: &str) -> Self {
        Self {
            vendor: ascii(vendor),
            product: ascii(product),
            revision: ascii(revision),
            serial: ascii(serial),
            naa: None,
            write_cache: true,
        }
    }

    /// The serial number without its padding.
    #[must_use]
    pub fn serial_text(&self) -> &[u8] {
        self.serial.trim_ascii_end()
    }
}

const fn ascii<const L: usize>(text: &str) -> [u8; L] {
    let mut field = [b' '; L];
    let (mut places, mut bytes) = (field.as_mut_slice(), text.as_bytes());
    while let (Some((place, more)), Some((byte, rest))) = (places.split_first_mut(), bytes.split_first()) {
        if byte.is_ascii_graphic() {
            *place = *byte;
        }
        (places, bytes) = (more, rest);
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_cut_padded_and_cleaned() {
        let config = Config::new("ABCDEFGHIJ", "disk", "1\n", "S1");
        assert_eq!(&config.vendor, b"ABCDEFGH");
        assert_eq!(&config.product, b"disk            ");
        assert_eq!(&config.revision, b"1   ");
        assert_eq!(config.serial_text(), b"S1");
    }
}
