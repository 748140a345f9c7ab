//! The opcode table: one row per opcode, from which commands are dispatched and IDENTIFY's capability bits are made.

use blk_core::storage::Info;

use super::interface::{Direction, Interface};
use super::power::Power;

/// Registers that hold a command's address and count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Addressing {
    /// The command has none.
    None,
    /// 28-bit LBA or CHS, 8-bit count: current bytes only.
    Lba28,
    /// 48-bit LBA, 16-bit count: both bytes of each register.
    Lba48,
    /// 48-bit LBA; a 16-bit count in Features, and the tag in Count.
    Queued,
}

/// Data transfer protocol of a command (ATA/ATAPI-7 volume 1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Protocol {
    /// There is none.
    NonData,
    /// To the host through the Data register, one block at a time.
    PioIn,
    /// From the host through the Data register, one block at a time.
    PioOut,
    /// To the host by DMA.
    DmaIn,
    /// From the host by DMA.
    DmaOut,
    /// By first-party DMA, beside other commands.
    Queued,
}

/// Operation of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[allow(missing_docs, reason = "each is the command of crate::command::Command of the same name")]
pub enum Operation {
    Read,
    Write { fua: bool },
    Queued(Direction),
    Verify,
    Flush,
    Identify,
    SetFeatures,
    SetMultiple,
    DataSetManagement,
    Smart,
    ReadLog,
    CheckPower,
    SetPower(Power),
    Diagnostic,
    Initialize,
    Recalibrate,
    Seek,
    Nop,
    NativeMax,
}

/// Capability without which a row is aborted and its bits are not shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// A staging buffer of one logical block at least.
    Staging,
    /// A front that does DMA.
    Dma,
    /// Serial ATA.
    Serial,
    /// A storage that discards, and the staging buffer and the DMA that the list of ranges comes in by.
    Discard,
}

/// A bit of IDENTIFY DEVICE data that says that a row is there. It is set where every row that has it is available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Advertised {
    /// Word 82, 83 or 84, and the same bit three words later: supported, and with that enabled.
    Both(u8, u8),
    /// A word and a bit.
    Bit(u8, u8),
}

/// One opcode.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The Command register.
    pub opcode: u8,
    /// What it does.
    pub operation: Operation,
    /// Where its address and count are.
    pub addressing: Addressing,
    /// How its data moves.
    pub protocol: Protocol,
    /// Whether a PIO data block is as long as SET MULTIPLE MODE says.
    pub multiple: bool,
    /// What it needs.
    pub needs: Needs,
    /// How IDENTIFY tells of it.
    pub advertised: [Option<Advertised>; 3],
}

impl Row {
    /// The row of an opcode.
    #[must_use]
    pub fn of(opcode: u8) -> Option<&'static Self> {
        TABLE.get(usize::from(*INDEX.get(usize::from(opcode))?))
    }

    /// The standard's name. Names are apart from the rows: a program that prints none has none in it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        let row = INDEX.get(usize::from(self.opcode)).and_then(|&row| NAMED.get(usize::from(row)));
        row.map_or("", |row| row.name)
    }

    /// Whether the row is there on this storage, behind this interface.
    #[must_use]
    pub fn available(&self, info: &Info, interface: Interface) -> bool {
        let staging = info.staging_bytes >= info.logical_block_bytes;
        match self.needs {
            Needs::Nothing => true,
            Needs::Staging => staging,
            Needs::Dma => interface.has_dma(),
            Needs::Serial => interface == Interface::Serial,
            Needs::Discard => staging && interface.has_dma() && info.discard,
        }
    }
}

/// A row as it is written down.
#[derive(Clone, Copy)]
struct Named {
    name: &'static str,
    row: Row,
}

const fn row(opcode: u8, name: &'static str, operation: Operation) -> Named {
    let row = Row {
        opcode,
        operation,
        addressing: Addressing::None,
        protocol: Protocol::NonData,
        multiple: false,
        needs: Needs::Nothing,
        advertised: [None; 3],
    };
    Named { name, row }
}

impl Named {
    const fn lba28(self) -> Self {
        Self { row: Row { addressing: Addressing::Lba28, ..self.row }, ..self }
    }

    const fn lba48(self) -> Self {
        Self { row: Row { addressing: Addressing::Lba48, ..self.row }, ..self }
    }

    const fn pio_in(self) -> Self {
        Self { row: Row { protocol: Protocol::PioIn, needs: Needs::Staging, ..self.row }, ..self }
    }

    const fn pio_out(self) -> Self {
        Self { row: Row { protocol: Protocol::PioOut, needs: Needs::Staging, ..self.row }, ..self }
    }

    const fn dma_in(self) -> Self {
        Self { row: Row { protocol: Protocol::DmaIn, needs: Needs::Dma, ..self.row }, ..self }
    }

    const fn dma_out(self) -> Self {
        Self { row: Row { protocol: Protocol::DmaOut, needs: Needs::Dma, ..self.row }, ..self }
    }

    const fn queued(self) -> Self {
        let row = Row {
            addressing: Addressing::Queued,
            protocol: Protocol::Queued,
            needs: Needs::Serial,
            advertised: [Some(Bit(76, 8)), None, None],
            ..self.row
        };
        Self { row, ..self }
    }

    const fn multiple(self) -> Self {
        Self { row: Row { multiple: true, ..self.row }, ..self }
    }

    const fn staged(self) -> Self {
        Self { row: Row { needs: Needs::Staging, ..self.row }, ..self }
    }

    const fn shows(self, bit: Advertised) -> Self {
        assert!(matches!(self.row.advertised, [_, _, None]), "a row has three bits at most");
        let advertised = match self.row.advertised {
            [None, ..] => [Some(bit), None, None],
            [first, None, _] => [first, Some(bit), None],
            [first, second, _] => [first, second, Some(bit)],
        };
        Self { row: Row { advertised, ..self.row }, ..self }
    }
}

use Advertised::{Bit, Both};
use Operation as Op;

const LBA48: Advertised = Both(83, 10);
const FUA: Advertised = Both(84, 6);
const POWER: Advertised = Both(82, 3);
const DMA: Advertised = Bit(49, 8);
const WRITE: Op = Op::Write { fua: false };
const WRITE_FUA: Op = Op::Write { fua: true };

/// Every opcode that is executed (ATA/ATAPI-7 volume 1; ACS-3; Linux `ATA_CMD_*`). Whatever is not here is aborted.
pub const TABLE: &[Row] = &{
    let mut rows = [NOP.row; NAMED.len()];
    let mut n = 0;
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "evaluated by the compiler")]
    while n < rows.len() {
        rows[n] = NAMED[n].row;
        n += 1;
    }
    rows
};

const NOP: Named = row(0x00, "NOP", Op::Nop).shows(Both(82, 14));

/// 21h, 31h, 41h, C9h and CBh are the forms "without retries" of ATA-1 to ATA-3, and 94h to 99h the power commands of the
/// same time; old firmware uses them.
const NAMED: &[Named] = &[
    NOP,
    row(0x06, "DATA SET MANAGEMENT", Op::DataSetManagement).trim(),
    row(0x10, "RECALIBRATE", Op::Recalibrate),
    row(0x20, "READ SECTOR(S)", Op::Read).lba28().pio_in(),
    row(0x21, "READ SECTOR(S) without retries", Op::Read).lba28().pio_in(),
    row(0x24, "READ SECTOR(S) EXT", Op::Read).lba48().pio_in().shows(LBA48),
    row(0x25, "READ DMA EXT", Op::Read).lba48().dma_in(),
    row(0x27, "READ NATIVE MAX ADDRESS EXT", Op::NativeMax).lba48(),
    row(0x29, "READ MULTIPLE EXT", Op::Read).lba48().pio_in().multiple(),
    row(0x2f, "READ LOG EXT", Op::ReadLog).lba48().pio_in().shows(Both(84, 5)),
    row(0x30, "WRITE SECTOR(S)", WRITE).lba28().pio_out(),
    row(0x31, "WRITE SECTOR(S) without retries", WRITE).lba28().pio_out(),
    row(0x34, "WRITE SECTOR(S) EXT", WRITE).lba48().pio_out().shows(LBA48),
    row(0x35, "WRITE DMA EXT", WRITE).lba48().dma_out(),
    row(0x39, "WRITE MULTIPLE EXT", WRITE).lba48().pio_out().multiple(),
    row(0x3d, "WRITE DMA FUA EXT", WRITE_FUA).lba48().dma_out().shows(FUA),
    row(0x40, "READ VERIFY SECTOR(S)", Op::Verify).lba28().staged(),
    row(0x41, "READ VERIFY SECTOR(S) without retries", Op::Verify).lba28().staged(),
    row(0x42, "READ VERIFY SECTOR(S) EXT", Op::Verify).lba48().staged(),
    row(0x60, "READ FPDMA QUEUED", Op::Queued(Direction::Read)).queued(),
    row(0x61, "WRITE FPDMA QUEUED", Op::Queued(Direction::Write)).queued(),
    row(0x70, "SEEK", Op::Seek).lba28(),
    row(0x90, "EXECUTE DEVICE DIAGNOSTIC", Op::Diagnostic),
    row(0x91, "INITIALIZE DEVICE PARAMETERS", Op::Initialize),
    row(0x94, "STANDBY IMMEDIATE (ATA-1)", Op::SetPower(Power::Standby)),
    row(0x95, "IDLE IMMEDIATE (ATA-1)", Op::SetPower(Power::Idle)),
    row(0x96, "STANDBY (ATA-1)", Op::SetPower(Power::Standby)),
    row(0x97, "IDLE (ATA-1)", Op::SetPower(Power::Idle)),
    row(0x98, "CHECK POWER MODE (ATA-1)", Op::CheckPower),
    row(0x99, "SLEEP (ATA-1)", Op::SetPower(Power::Sleep)),
    row(0xb0, "SMART", Op::Smart).pio_in().shows(Both(82, 0)).shows(Both(84, 0)).shows(Both(84, 1)),
    row(0xc4, "READ MULTIPLE", Op::Read).lba28().pio_in().multiple(),
    row(0xc5, "WRITE MULTIPLE", WRITE).lba28().pio_out().multiple(),
    row(0xc6, "SET MULTIPLE MODE", Op::SetMultiple),
    row(0xc8, "READ DMA", Op::Read).lba28().dma_in().shows(DMA),
    row(0xc9, "READ DMA without retries", Op::Read).lba28().dma_in(),
    row(0xca, "WRITE DMA", WRITE).lba28().dma_out().shows(DMA),
    row(0xcb, "WRITE DMA without retries", WRITE).lba28().dma_out(),
    row(0xce, "WRITE MULTIPLE FUA EXT", WRITE_FUA).lba48().pio_out().multiple().shows(FUA),
    row(0xe0, "STANDBY IMMEDIATE", Op::SetPower(Power::Standby)).shows(POWER),
    row(0xe1, "IDLE IMMEDIATE", Op::SetPower(Power::Idle)).shows(POWER),
    row(0xe2, "STANDBY", Op::SetPower(Power::Standby)).shows(POWER),
    row(0xe3, "IDLE", Op::SetPower(Power::Idle)).shows(POWER),
    row(0xe5, "CHECK POWER MODE", Op::CheckPower).shows(POWER),
    row(0xe6, "SLEEP", Op::SetPower(Power::Sleep)).shows(POWER),
    row(0xe7, "FLUSH CACHE", Op::Flush).shows(Both(83, 12)),
    row(0xea, "FLUSH CACHE EXT", Op::Flush).lba48().shows(Both(83, 13)),
    row(0xec, "IDENTIFY DEVICE", Op::Identify).pio_in(),
    row(0xef, "SET FEATURES", Op::SetFeatures),
    row(0xf8, "READ NATIVE MAX ADDRESS", Op::NativeMax).lba28(),
];

impl Named {
    const fn trim(self) -> Self {
        let named = self.lba48().dma_out().shows(Bit(169, 0));
        Self { row: Row { needs: Needs::Discard, ..named.row }, ..named }
    }
}

/// Row number of each opcode; past the end of the table for an opcode that has none.
const INDEX: [u8; 256] = {
    let mut index = [u8::MAX; 256];
    let mut row = 0_u8;
    #[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects, reason = "evaluated by the compiler")]
    while (row as usize) < TABLE.len() {
        let opcode = TABLE[row as usize].opcode as usize;
        assert!(index[opcode] == u8::MAX, "an opcode has one row");
        index[opcode] = row;
        row += 1;
    }
    index
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_opcode_finds_its_own_row_and_the_rest_find_none() {
        for opcode in 0..=255_u8 {
            let expected = NAMED.iter().find(|named| named.row.opcode == opcode).map(|named| named.name);
            assert_eq!(Row::of(opcode).map(Row::name), expected);
        }
    }

    #[test]
    fn every_row_with_an_ext_name_is_48_bit_and_no_other_is_but_data_set_management() {
        for row in TABLE {
            let ext = row.name().ends_with("EXT") || row.opcode == 0x06;
            assert_eq!(ext, row.addressing == Addressing::Lba48, "{}", row.name());
        }
    }
}
