//! Decoder of task files: [`decode`] is pure, and decides everything that the registers decide.

use core::fmt;

use super::geometry::Geometry;
use super::interface::Direction;
use super::power::Power;
use super::table::{Addressing, Operation, Row};
use crate::wire::{DeviceBits, Pair, TaskFile};

/// A run of logical blocks, as a command names it. Not yet checked against the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Blocks {
    /// First logical block.
    pub lba: u64,
    /// Length: 1 to 65,536.
    pub count: u32,
}

/// READ or WRITE FPDMA QUEUED.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Queued {
    /// 0 to 31. Not yet checked against what is outstanding.
    pub tag: u8,
    /// Which way.
    pub direction: Direction,
    /// Where.
    pub blocks: Blocks,
    /// Force Unit Access.
    pub fua: bool,
}

impl Queued {
    /// Decodes the registers of a queued command: nothing can be wrong with them (ATA8-ACS, READ FPDMA QUEUED).
    ///
    /// The tag is Count(7:3), FUA is Device bit 7. The priority in Count(15:14) is a hint.
    #[must_use]
    #[inline]
    pub const fn decode(direction: Direction, task: &TaskFile) -> Self {
        let count = wide_count(task.features);
        Self {
            tag: task.count.current >> 3,
            direction,
            blocks: Blocks { lba: task.lba48(), count },
            fua: task.device & DeviceBits::FUA.bits() != 0,
        }
    }
}

/// A decoded command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Command {
    /// Blocks to the host.
    Read(Blocks),
    /// Blocks from the host; with `fua`, stable when the command ends.
    Write {
        /// Where.
        blocks: Blocks,
        /// Force Unit Access.
        fua: bool,
    },
    /// A queued read or write.
    Queued(Queued),
    /// Blocks read from the medium and dropped.
    Verify(Blocks),
    /// Everything acknowledged becomes stable. `ext` decides how an error's address is reported.
    Flush,
    /// IDENTIFY DEVICE.
    Identify,
    /// SET FEATURES.
    SetFeatures {
        /// Features register.
        subcommand: u8,
        /// Count register.
        count: u8,
    },
    /// SET MULTIPLE MODE.
    SetMultiple {
        /// Blocks per DRQ; 0 turns the MULTIPLE commands off.
        blocks: u8,
    },
    /// DATA SET MANAGEMENT.
    DataSetManagement {
        /// Features bit 0: TRIM, the only function there is.
        trim: bool,
        /// 512-byte blocks of ranges.
        blocks: u32,
    },
    /// SMART.
    Smart {
        /// Features register: which of the SMART commands.
        subcommand: u8,
        /// LBA Low register: the test or the log.
        selector: u8,
        /// Count register.
        count: u8,
        /// Whether LBA Mid and High hold 4Fh and C2h, without which every SMART command is aborted.
        key: bool,
    },
    /// READ LOG EXT.
    ReadLog {
        /// Which log.
        address: u8,
        /// First 512-byte page.
        page: u16,
        /// Pages; 0 is not valid.
        count: u16,
    },
    /// CHECK POWER MODE.
    CheckPower,
    /// IDLE, STANDBY, SLEEP and their IMMEDIATE forms.
    SetPower(Power),
    /// EXECUTE DEVICE DIAGNOSTIC; a channel runs it for both of its devices.
    Diagnostic,
    /// INITIALIZE DEVICE PARAMETERS; `None` for a translation that there cannot be.
    Initialize(Option<Geometry>),
    /// SEEK and RECALIBRATE: nothing to do where the address is valid.
    Seek(Blocks),
    /// NOP, which always ends as aborted.
    Nop,
    /// READ NATIVE MAX ADDRESS, in 48-bit form if `ext`.
    NativeMax {
        /// The EXT form.
        ext: bool,
    },
}

/// Why a task file is no command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Reject {
    /// No such opcode.
    Unknown,
    /// A CHS address that the translation does not have.
    NoSuchAddress,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no such opcode",
            Self::NoSuchAddress => "a CHS address that the translation does not have",
        })
    }
}

impl core::error::Error for Reject {}

/// Decodes a task file whose Command register has been written.
///
/// A 28-bit command takes the current bytes of the registers and never the previous ones (host-std/tests/defects.md, 9); a 48-bit command
/// takes both, its count included (host-std/tests/defects.md, 2). A count of zero is 256 or 65,536 blocks.
///
/// # Errors
/// [`Reject`]; nothing else can be wrong with the registers alone.
#[inline]
pub fn decode(task: &TaskFile, geometry: Geometry) -> Result<(&'static Row, Command), Reject> {
    let row = Row::of(task.command).ok_or(Reject::Unknown)?;
    let blocks = blocks(row.addressing, task, geometry);
    let command = match row.operation {
        Operation::Read => Command::Read(blocks?),
        Operation::Write { fua } => Command::Write { blocks: blocks?, fua },
        Operation::Queued(direction) => Command::Queued(Queued::decode(direction, task)),
        Operation::Verify => Command::Verify(blocks?),
        Operation::Flush => Command::Flush,
        Operation::Identify => Command::Identify,
        Operation::SetFeatures => {
            Command::SetFeatures { subcommand: task.features.current, count: task.count.current }
        }
        Operation::SetMultiple => Command::SetMultiple { blocks: task.count.current },
        Operation::DataSetManagement => {
            Command::DataSetManagement { trim: task.features.current & 1 != 0, blocks: blocks?.count }
        }
        Operation::Smart => Command::Smart {
            subcommand: task.features.current,
            selector: task.lba_low.current,
            count: task.count.current,
            key: (task.lba_mid.current, task.lba_high.current) == (0x4f, 0xc2),
        },
        // ACS-3, READ LOG EXT: the log address is LBA(7:0), the page LBA(15:8) and LBA(39:32).
        Operation::ReadLog => Command::ReadLog {
            address: task.lba_low.current,
            page: task.lba_mid.wide(),
            count: task.count.wide(),
        },
        Operation::CheckPower => Command::CheckPower,
        Operation::SetPower(power) => Command::SetPower(power),
        Operation::Diagnostic => Command::Diagnostic,
        Operation::Initialize => {
            let heads = (task.device & 0x0f).wrapping_add(1);
            Command::Initialize(Geometry::new(heads, task.count.current))
        }
        Operation::Recalibrate => Command::Seek(Blocks { lba: 0, count: 1 }),
        Operation::Seek => Command::Seek(Blocks { count: 1, ..blocks? }),
        Operation::Nop => Command::Nop,
        Operation::NativeMax => Command::NativeMax { ext: row.addressing == Addressing::Lba48 },
    };
    Ok((row, command))
}

#[inline]
fn blocks(addressing: Addressing, task: &TaskFile, geometry: Geometry) -> Result<Blocks, Reject> {
    let lba = match addressing {
        // What a queued command has is where no other has it: [`Queued::decode`].
        Addressing::None | Addressing::Queued => 0,
        Addressing::Lba48 => task.lba48(),
        Addressing::Lba28 if task.device & DeviceBits::LBA.bits() != 0 => u64::from(task.lba28()),
        Addressing::Lba28 => {
            let cylinder = u16::from_le_bytes([task.lba_mid.current, task.lba_high.current]);
            geometry.block(cylinder, task.device & 0x0f, task.lba_low.current).ok_or(Reject::NoSuchAddress)?
        }
    };
    let count = match (addressing, task.count.current) {
        (Addressing::Lba48, _) => wide_count(task.count),
        (_, 0) => 256,
        (_, current) => u32::from(current),
    };
    Ok(Blocks { lba, count })
}

const fn wide_count(register: Pair) -> u32 {
    match register.wide() {
        0 => 65_536,
        wide => wide as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::TABLE;

    fn task(command: u8, bytes: [(u8, u8); 5]) -> TaskFile {
        let [features, count, lba_low, lba_mid, lba_high] =
            bytes.map(|(previous, current)| Pair { current, previous });
        TaskFile { features, count, lba_low, lba_mid, lba_high, device: 0x40, command }
    }

    fn decoded(task: &TaskFile) -> Command {
        decode(task, Geometry::DEFAULT).unwrap().1
    }

    /// host-std/tests/defects.md, 2.
    #[test]
    fn a_count_of_0x0100_in_lba48_is_256_sectors() {
        let task = task(0x34, [(0, 0), (1, 0), (0, 7), (0, 0), (0, 0)]);
        let blocks = Blocks { lba: 7, count: 256 };
        assert_eq!(decoded(&task), Command::Write { blocks, fua: false });
    }

    #[test]
    fn a_count_of_zero_is_the_most_that_its_width_can_say() {
        let zero = [(0, 0); 5];
        assert_eq!(decoded(&task(0x24, zero)), Command::Read(Blocks { lba: 0, count: 65_536 }));
        let stale = [(0, 0), (9, 0), (0, 0), (0, 0), (0, 0)];
        assert_eq!(decoded(&task(0x20, stale)), Command::Read(Blocks { lba: 0, count: 256 }));
    }

    /// host-std/tests/defects.md, 9.
    #[test]
    fn previous_register_bytes_reach_48_bit_commands_only() {
        let bytes = [(1, 0), (2, 3), (0x44, 0x11), (0x55, 0x22), (0x66, 0x33)];
        for row in TABLE {
            let command = decoded(&task(row.opcode, bytes));
            let blocks = match command {
                Command::Read(blocks) | Command::Verify(blocks) | Command::Write { blocks, .. } => blocks,
                _ => continue,
            };
            let expected = match row.addressing {
                Addressing::Lba48 => Blocks { lba: 0x6655_4433_2211, count: 0x0203 },
                _ => Blocks { lba: 0x33_2211, count: 3 },
            };
            assert_eq!(blocks, expected, "{}", row.name());
        }
    }

    #[test]
    fn a_28_bit_address_has_its_top_bits_in_the_device_register() {
        let mut task = task(0xc8, [(0, 0), (0, 1), (0, 0x78), (0, 0x56), (0, 0x34)]);
        task.device = 0xf2;
        assert_eq!(decoded(&task), Command::Read(Blocks { lba: 0x234_5678, count: 1 }));
    }

    #[test]
    fn a_queued_command_has_its_count_in_features_and_its_tag_in_count() {
        let mut task = task(0x61, [(1, 2), (0xc0, 31 << 3 | 7), (0x44, 0x11), (0x55, 0x22), (0x66, 0x33)]);
        let blocks = Blocks { lba: 0x6655_4433_2211, count: 0x0102 };
        let (tag, direction) = (31, Direction::Write);
        assert_eq!(decoded(&task), Command::Queued(Queued { tag, direction, blocks, fua: false }));
        task.device |= 0x80;
        task.features = Pair::new(0);
        let blocks = Blocks { count: 65_536, ..blocks };
        assert_eq!(decoded(&task), Command::Queued(Queued { tag, direction, blocks, fua: true }));
    }

    #[test]
    fn chs_addresses_are_translated_and_bounded() {
        let mut task = task(0x20, [(0, 0), (0, 1), (0, 1), (0, 2), (0, 1)]);
        task.device = 3;
        let lba = (0x102 * 16 + 3) * 63;
        assert_eq!(decoded(&task), Command::Read(Blocks { lba, count: 1 }));
        for (sector, head) in [(0, 0), (64, 0), (1, 4)] {
            task.lba_low.current = sector;
            task.device = head;
            let geometry = Geometry::new(4, 63).unwrap();
            assert_eq!(decode(&task, geometry).err(), Some(Reject::NoSuchAddress), "{sector} {head}");
        }
    }

    /// CVE-2015-6855.
    #[test]
    fn a_translation_with_no_sectors_per_track_is_none() {
        let mut task = task(0x91, [(0, 0); 5]);
        task.device = 0x0f;
        assert_eq!(decoded(&task), Command::Initialize(None));
        assert_eq!(Geometry::DEFAULT.cylinders(u64::MAX), u16::MAX);
    }
}
