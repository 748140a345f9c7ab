//! Whom a request is for: the eight bytes of VIRTIO 1.3, 5.6.6.1.

/// Highest logical unit number: 14 bits of flat space addressing (SAM-5, flat space addressing method).
pub const LUN_MAX: u16 = 0x3fff;

/// A logical unit's place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Address {
    /// The target.
    pub target: u8,
    /// The unit within it, [`LUN_MAX`] at most.
    pub lun: u16,
}

impl Address {
    /// As the driver writes it: 1, the target, the number in flat space form.
    #[must_use]
    pub fn encode(self) -> [u8; 8] {
        let [high, low] = self.flat();
        [1, self.target, high, low, 0, 0, 0, 0]
    }

    /// As REPORT LUNS of the target lists it.
    #[must_use]
    pub(super) fn single_level(self) -> [u8; 8] {
        let [high, low] = self.listed();
        [high, low, 0, 0, 0, 0, 0, 0]
    }

    /// As an event names it. Linux (`virtscsi_handle_param_change`) takes the two bytes for the number under which REPORT
    /// LUNS has listed the unit, as QEMU (`virtio_scsi_push_event`) knows.
    #[must_use]
    pub(super) fn in_event(self) -> [u8; 8] {
        let [high, low] = self.listed();
        [1, self.target, high, low, 0, 0, 0, 0]
    }

    /// Peripheral device addressing where that reaches, as is usual, for a guest takes the bytes for a number.
    fn listed(self) -> [u8; 2] {
        if self.lun < 0x100 { self.lun.to_be_bytes() } else { self.flat() }
    }

    fn flat(self) -> [u8; 2] {
        (0x4000 | self.lun & LUN_MAX).to_be_bytes()
    }
}

/// Addressee of an eight-byte LUN field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Addressed {
    /// The well-known logical unit REPORT LUNS of the host.
    ReportLuns,
    /// A logical unit, whether there is one or not.
    Unit(Address),
    /// Something in a target that has no logical unit number of a kind that is known here.
    Within(u8),
    /// Nothing.
    Nowhere,
}

impl Addressed {
    /// A single-level LUN has peripheral device addressing on bus 0, or flat space addressing.
    #[inline]
    pub(super) fn decode(bytes: [u8; 8]) -> Self {
        let word = u64::from_be_bytes(bytes);
        let [_, target, ..] = bytes;
        let lun = (word >> 32) as u16;
        match word & 0xff00_0000_ffff_ffff {
            0x0100_0000_0000_0000 if lun < 0x100 => Self::Unit(Address { target, lun }),
            0x0100_0000_0000_0000 if lun & 0xc000 == 0x4000 => {
                Self::Unit(Address { target, lun: lun & LUN_MAX })
            }
            _ if word >> 56 == 1 => Self::Within(target),
            _ if word == 0xc101_0000_0000_0000 => Self::ReportLuns,
            _ => Self::Nowhere,
        }
    }

    /// The target, if one is meant.
    pub(super) const fn target(self) -> Option<u8> {
        match self {
            Self::Unit(Address { target, .. }) | Self::Within(target) => Some(target),
            Self::ReportLuns | Self::Nowhere => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_a_number_are_read_and_others_are_not() {
        let unit = |target, lun| Addressed::Unit(Address { target, lun });
        for (bytes, addressed) in [
            ([1, 3, 0, 5, 0, 0, 0, 0], unit(3, 5)),
            ([1, 3, 0x40, 5, 0, 0, 0, 0], unit(3, 5)),
            ([1, 0, 0x7f, 0xff, 0, 0, 0, 0], unit(0, LUN_MAX)),
            ([0xc1, 1, 0, 0, 0, 0, 0, 0], Addressed::ReportLuns),
            ([1, 3, 0x80, 5, 0, 0, 0, 0], Addressed::Within(3)),
            ([1, 3, 0x01, 5, 0, 0, 0, 0], Addressed::Within(3)),
            ([1, 3, 0, 5, 0, 0, 0, 1], Addressed::Within(3)),
            ([0, 3, 0, 5, 0, 0, 0, 0], Addressed::Nowhere),
            ([0xc1, 1, 0, 5, 0, 0, 0, 0], Addressed::Nowhere),
        ] {
            assert_eq!(Addressed::decode(bytes), addressed, "{bytes:?}");
        }
    }

    #[test]
    fn what_is_encoded_is_decoded() {
        for lun in [0, 1, 0xff, 0x100, LUN_MAX] {
            let address = Address { target: 7, lun };
            assert_eq!(Addressed::decode(address.encode()), Addressed::Unit(address));
        }
        assert_eq!(Address { target: 7, lun: 0xff }.single_level()[..2], [0, 0xff]);
        assert_eq!(Address { target: 7, lun: 0x100 }.single_level()[..2], [0x41, 0x00]);
    }
}
