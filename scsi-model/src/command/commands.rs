//! Commands, decoded.

/// A run of logical blocks, as the guest names it. Not yet checked against the capacity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct Blocks {
    /// First logical block.
    pub lba: u64,
    /// Blocks.
    pub count: u64,
}

/// Whether a command exists in a form of 6 bytes or of 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum ModeForm {
    /// MODE SENSE(6), MODE SELECT(6).
    Six,
    /// MODE SENSE(10), MODE SELECT(10).
    Ten,
}

/// Values of the mode pages that MODE SENSE asks for: SPC-4, MODE SENSE(6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum PageControl {
    /// In force.
    Current,
    /// A mask of what MODE SELECT can change.
    Changeable,
    /// After a reset.
    Default,
    /// Saved; there are none.
    Saved,
}

/// Data that VERIFY compares with: BYTCHK, SBC-3, VERIFY(10).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub enum Against {
    /// Nothing: the medium is read, and that is all (00b).
    Nothing,
    /// A block of data for each block (01b).
    Data,
    /// One block of data, for every block (11b).
    OneBlock,
}

/// A decoded command. Lengths are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
#[allow(missing_docs, reason = "each variant and field is named as in the standards")]
pub enum Command {
    TestUnitReady,
    RequestSense {
        descriptors: bool,
        allocation: u32,
    },
    Inquiry {
        page: Option<u8>,
        allocation: u32,
    },
    ReportLuns {
        select: u8,
        allocation: u32,
    },
    ReportOpcodes {
        options: u8,
        timeouts: bool,
        opcode: u8,
        service_action: u16,
        allocation: u32,
    },
    ReadCapacity10,
    ReadCapacity16 {
        allocation: u32,
    },
    GetLbaStatus {
        lba: u64,
        allocation: u32,
    },
    ModeSense(ModeSense),
    ModeSelect {
        form: ModeForm,
        list: u16,
    },
    StartStopUnit {
        start: bool,
        flush: bool,
    },
    PreventAllow {
        prevent: bool,
    },
    Read {
        blocks: Blocks,
        fua: bool,
    },
    Write {
        blocks: Blocks,
        fua: bool,
    },
    WriteAndVerify {
        blocks: Blocks,
    },
    Verify {
        blocks: Blocks,
        against: Against,
    },
    CompareAndWrite {
        blocks: Blocks,
        fua: bool,
    },
    OrWrite {
        blocks: Blocks,
        fua: bool,
    },
    SynchronizeCache {
        blocks: Blocks,
    },
    WriteSame {
        blocks: Blocks,
        unmap: bool,
        no_data: bool,
    },
    Unmap {
        list: u16,
    },
    /// Not in the table; kept for the log.
    Unknown {
        opcode: u8,
        service_action: u16,
    },
}

/// MODE SENSE, of 6 bytes or of 10.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(
    feature = "snapshot",
    derive(serde::Serialize, serde::Deserialize, postcard::experimental::max_size::MaxSize)
)]
#[cfg_attr(feature = "defmt", derive(defmt::Format))]
pub struct ModeSense {
    /// Which header.
    pub form: ModeForm,
    /// LLBAA: block descriptors may be long.
    pub long_lba: bool,
    /// DBD: no block descriptors.
    pub no_descriptors: bool,
    /// PC.
    pub control: PageControl,
    /// PAGE CODE; 3Fh is all of them.
    pub page: u8,
    /// SUBPAGE CODE.
    pub subpage: u8,
    /// ALLOCATION LENGTH in bytes.
    pub allocation: u16,
}
