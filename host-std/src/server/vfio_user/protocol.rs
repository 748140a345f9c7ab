//! The messages of vfio-user (its specification, version 0.1: "Protocol Specification"), as bytes and as values. No I/O.
//!
//! All fields are in the byte order of the machine.

use bitflags::bitflags;
use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Most bytes of data in a message, either way: what a peer has to assume that names no other.
pub const DATA_MAX: usize = 1 << 20;
/// Most bytes of a message: the longest has a header, 16 bytes of its own and data.
pub const MESSAGE_MAX: usize = size_of::<Header>() + 16 + DATA_MAX;
/// Most descriptors with a message. QEMU takes a greater number for an error.
pub const FDS_MAX: usize = 16;
/// Most mappings at a time.
pub const MAPPINGS_MAX: usize = 4096;
/// What mappings are multiples of.
pub const PAGE_BYTES: u64 = 4096;

/// Before every message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// Its sender's; echoed in the reply.
    pub id: u16,
    /// What it is.
    pub command: u16,
    /// Bytes of the message, this header included.
    pub bytes: u32,
    /// [`Flags`].
    pub flags: u32,
    /// In a reply with [`Flags::ERROR`]: an errno.
    pub error: u32,
}

bitflags! {
    /// Flags of a header. Bits 0 to 3 are its type: 0 for a command.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Flags: u32 {
        /// Type: a reply.
        const REPLY = 1;
        /// The command wants no reply.
        const NO_REPLY = 1 << 4;
        /// The reply says that the command failed.
        const ERROR = 1 << 5;
    }
}

const TYPE: u32 = 0xf;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A command.
    Command {
        /// Whether it is to be answered.
        reply: bool,
    },
    /// The answer to a command.
    Reply,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = size_of::<Self>();

    /// What kind of message follows; `None` if the stream makes no sense from here on.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        let fits = (Self::BYTES..=MESSAGE_MAX).contains(&(self.bytes as usize));
        match self.flags & TYPE {
            0 if fits => Some(Kind::Command { reply: self.flags & Flags::NO_REPLY.bits() == 0 }),
            1 if fits => Some(Kind::Reply),
            _ => None,
        }
    }

    /// Bytes that follow it.
    #[must_use]
    pub const fn body_bytes(&self) -> usize {
        (self.bytes as usize).saturating_sub(Self::BYTES)
    }

    /// The header of a command.
    #[must_use]
    pub const fn command(id: u16, command: u16, body_bytes: usize) -> Self {
        Self { id, command, bytes: (Self::BYTES + body_bytes) as u32, flags: 0, error: 0 }
    }

    /// The header of the reply to this command.
    #[must_use]
    pub const fn reply(self, body_bytes: usize) -> Self {
        Self { flags: Flags::REPLY.bits(), ..Self::command(self.id, self.command, body_bytes) }
    }

    /// A reply that says that this command failed.
    #[must_use]
    pub const fn failure(self, errno: Errno) -> Self {
        let flags = Flags::REPLY.bits() | Flags::ERROR.bits();
        Self { flags, error: errno.raw_os_error().unsigned_abs(), ..Self::command(self.id, self.command, 0) }
    }
}

/// The commands.
pub mod command {
    #![expect(missing_docs, reason = "the names of the specification")]
    pub const VERSION: u16 = 1;
    pub const DMA_MAP: u16 = 2;
    pub const DMA_UNMAP: u16 = 3;
    pub const DEVICE_GET_INFO: u16 = 4;
    pub const DEVICE_GET_REGION_INFO: u16 = 5;
    pub const DEVICE_GET_REGION_IO_FDS: u16 = 6;
    pub const DEVICE_GET_IRQ_INFO: u16 = 7;
    pub const DEVICE_SET_IRQS: u16 = 8;
    pub const REGION_READ: u16 = 9;
    pub const REGION_WRITE: u16 = 10;
    pub const DMA_READ: u16 = 11;
    pub const DMA_WRITE: u16 = 12;
    pub const DEVICE_RESET: u16 = 13;
    pub const REGION_WRITE_MULTI: u16 = 15;
}

/// The beginning of VERSION and of its reply; a JSON text with a NUL at its end may follow.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Version {
    /// 0.
    pub major: u16,
    /// 0 or more.
    pub minor: u16,
}

/// DMA_MAP. Its file's descriptor comes with it, if there is one.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaMap {
    /// Bytes of this.
    pub argsz: u32,
    /// [`DmaFlags`].
    pub flags: u32,
    /// Where in the file it begins.
    pub offset: u64,
    /// Where the device sees it.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
}

bitflags! {
    /// Flags of DMA_MAP.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct DmaFlags: u32 {
        /// The device may read.
        const READ = 1;
        /// The device may write.
        const WRITE = 1 << 1;
        /// The file may be mapped (libvfio-user; others mean the same by giving one).
        const MMAP = 1 << 2;
    }
}

/// DMA_UNMAP and its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaUnmap {
    /// Most bytes of the reply.
    pub argsz: u32,
    /// [`UNMAP_ALL`].
    pub flags: u32,
    /// Where the device sees it.
    pub address: u64,
    /// Its bytes.
    pub size: u64,
}

/// Flag of DMA_UNMAP: all mappings (`VFIO_DMA_UNMAP_FLAG_ALL`); address and size are 0.
pub const UNMAP_ALL: u32 = 1 << 1;

/// DEVICE_GET_INFO and its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DeviceInfo {
    /// Most bytes of the reply; bytes of it.
    pub argsz: u32,
    /// 1: it can be reset. 2: it is a PCI device.
    pub flags: u32,
    /// Regions.
    pub regions: u32,
    /// Kinds of interrupts.
    pub irqs: u32,
}

/// DEVICE_GET_REGION_INFO and its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionInfo {
    /// Most bytes of the reply; bytes of it.
    pub argsz: u32,
    /// 1: it can be read. 2: it can be written.
    pub flags: u32,
    /// Which region.
    pub index: u32,
    /// Where its capabilities are: none.
    pub cap_offset: u32,
    /// Its bytes.
    pub size: u64,
    /// Where to map it: nowhere.
    pub offset: u64,
}

/// DEVICE_GET_IRQ_INFO and its reply.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqInfo {
    /// Most bytes of the reply; bytes of it.
    pub argsz: u32,
    /// 1: by eventfd. 2: it can be masked. 4: it masks itself. 8: it is set up as a whole.
    pub flags: u32,
    /// Which kind.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

/// The beginning of DEVICE_SET_IRQS. Booleans may follow it, eventfds come with it.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes of this and of what follows.
    pub argsz: u32,
    /// [`IrqFlags`]: one kind of data, one action.
    pub flags: u32,
    /// Which kind.
    pub index: u32,
    /// The first.
    pub start: u32,
    /// How many.
    pub count: u32,
}

bitflags! {
    /// Flags of DEVICE_SET_IRQS.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqFlags: u32 {
        /// No data: all of the range.
        const NONE = 1;
        /// A byte for each: those that are not 0.
        const BOOL = 1 << 1;
        /// An eventfd for each; none at all takes them away.
        const EVENTFD = 1 << 2;
        /// They are masked.
        const MASK = 1 << 3;
        /// They are unmasked.
        const UNMASK = 1 << 4;
        /// They are triggered, or the eventfds are what to signal.
        const TRIGGER = 1 << 5;
    }
}

/// The beginning of REGION_READ, REGION_WRITE and of their replies. Data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RegionAccess {
    /// Where in the region.
    pub offset: u64,
    /// Which region.
    pub region: u32,
    /// Bytes.
    pub count: u32,
}

/// One of the writes of REGION_WRITE_MULTI.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct SmallWrite {
    /// Where; 8 bytes at most.
    pub access: RegionAccess,
    /// The data, in the first bytes.
    pub data: [u8; 8],
}

/// The beginning of DMA_READ, DMA_WRITE and of their replies. Data follows.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DmaAccess {
    /// Where the device sees it.
    pub address: u64,
    /// Bytes.
    pub count: u64,
}

/// A command, taken apart.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the messages above")]
pub enum Request<'a> {
    Version { version: Version, data: &'a [u8] },
    DmaMap(DmaMap),
    DmaUnmap(DmaUnmap),
    DeviceInfo,
    RegionInfo { index: u32 },
    IrqInfo { index: u32 },
    SetIrqs { set: IrqSet, flags: IrqFlags, data: &'a [u8] },
    RegionRead(RegionAccess),
    RegionWrite { access: RegionAccess, data: &'a [u8] },
    WriteMulti { writes: &'a [u8] },
    Reset,
}

impl<'a> Request<'a> {
    /// Takes the body of a command apart. Its lengths are those that its fields say, its flags are known.
    ///
    /// # Errors
    /// What the reply is to say: INVAL, or OPNOTSUPP for what is not done here.
    pub fn parse(command: u16, body: &'a [u8]) -> Result<Self, Errno> {
        Ok(match command {
            command::VERSION => {
                let (version, data) = prefix(body)?;
                Self::Version { version, data }
            }
            command::DMA_MAP => Self::DmaMap(sized(body, |map: &DmaMap| map.argsz)?),
            command::DMA_UNMAP => {
                let unmap = sized(body, |unmap: &DmaUnmap| unmap.argsz)?;
                match unmap.flags {
                    0 => {}
                    UNMAP_ALL if unmap.address == 0 && unmap.size == 0 => {}
                    UNMAP_ALL => return Err(Errno::INVAL),
                    // Dirty pages are not tracked.
                    _ => return Err(Errno::OPNOTSUPP),
                }
                Self::DmaUnmap(unmap)
            }
            command::DEVICE_GET_INFO => {
                sized(body, |info: &DeviceInfo| info.argsz)?;
                Self::DeviceInfo
            }
            command::DEVICE_GET_REGION_INFO => {
                Self::RegionInfo { index: sized(body, |info: &RegionInfo| info.argsz)?.index }
            }
            command::DEVICE_GET_IRQ_INFO => {
                Self::IrqInfo { index: sized(body, |info: &IrqInfo| info.argsz)?.index }
            }
            command::DEVICE_SET_IRQS => {
                let (set, data) = prefix::<IrqSet>(body)?;
                let flags = IrqFlags::from_bits(set.flags).ok_or(Errno::INVAL)?;
                if (set.argsz as usize) < size_of::<IrqSet>() {
                    return Err(Errno::INVAL);
                }
                Self::SetIrqs { set, flags, data }
            }
            command::REGION_READ => {
                let (access, rest) = prefix::<RegionAccess>(body)?;
                if !rest.is_empty() || access.count as usize > DATA_MAX {
                    return Err(Errno::INVAL);
                }
                Self::RegionRead(access)
            }
            command::REGION_WRITE => {
                let (access, data) = prefix::<RegionAccess>(body)?;
                if data.len() != access.count as usize {
                    return Err(Errno::INVAL);
                }
                Self::RegionWrite { access, data }
            }
            command::REGION_WRITE_MULTI => {
                let (count, writes) = prefix::<u64>(body)?;
                let bytes = count.checked_mul(size_of::<SmallWrite>() as u64).ok_or(Errno::INVAL)?;
                if writes.len() as u64 != bytes {
                    return Err(Errno::INVAL);
                }
                Self::WriteMulti { writes }
            }
            command::DEVICE_RESET if body.is_empty() => Self::Reset,
            command::DEVICE_RESET => return Err(Errno::INVAL),
            _ => return Err(Errno::OPNOTSUPP),
        })
    }
}

fn prefix<T: FromBytes>(body: &[u8]) -> Result<(T, &[u8]), Errno> {
    T::read_from_prefix(body).map_err(|_| Errno::INVAL)
}

/// What begins with its own size, which has to hold all of it. More may follow: later versions add fields.
fn sized<T: FromBytes>(body: &[u8], argsz: impl Fn(&T) -> u32) -> Result<T, Errno> {
    let (value, _) = prefix::<T>(body)?;
    if (argsz(&value) as usize) < size_of::<T>() { Err(Errno::INVAL) } else { Ok(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_those_of_the_specification() {
        assert_eq!((size_of::<Header>(), size_of::<Version>()), (16, 4));
        assert_eq!((size_of::<DmaMap>(), size_of::<DmaUnmap>(), size_of::<DmaAccess>()), (32, 24, 16));
        assert_eq!((size_of::<DeviceInfo>(), size_of::<RegionInfo>(), size_of::<IrqInfo>()), (16, 32, 16));
        assert_eq!((size_of::<IrqSet>(), size_of::<RegionAccess>(), size_of::<SmallWrite>()), (20, 16, 24));
        let bytes = Header::command(0x0102, 3, 8).reply(0).as_bytes().to_vec();
        assert_eq!(bytes, [2, 1, 3, 0, 16, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn a_header_of_no_kind_or_length_is_the_end_of_the_stream() {
        let header = Header::command(1, command::REGION_READ, 16);
        assert_eq!(header.kind(), Some(Kind::Command { reply: true }));
        assert_eq!(Header { flags: 0x10, ..header }.kind(), Some(Kind::Command { reply: false }));
        assert_eq!(header.failure(Errno::INVAL).kind(), Some(Kind::Reply));
        for bytes in [0, 15, MESSAGE_MAX as u32 + 1, u32::MAX] {
            assert_eq!(Header { bytes, ..header }.kind(), None);
        }
        assert_eq!(Header { flags: 2, ..header }.kind(), None);
    }

    #[test]
    fn bodies_that_are_short_or_contradict_themselves_are_refused() {
        let commands = [1, 2, 3, 4, 5, 7, 8, 9, 10, 15];
        for command in commands {
            assert!(matches!(Request::parse(command, &[0; 3]), Err(Errno::INVAL)), "{command}");
        }
        for command in [0, 6, 11, 12, 14, 16, u16::MAX] {
            assert!(matches!(Request::parse(command, &[0; 64]), Err(Errno::OPNOTSUPP)), "{command}");
        }
        assert!(Request::parse(command::DEVICE_RESET, &[0]).is_err());
        let access = |count| RegionAccess { offset: 0, region: 0, count };
        let write = |count, data: &[u8]| [access(count).as_bytes(), data].concat();
        assert!(Request::parse(command::REGION_WRITE, &write(4, &[0; 4])).is_ok());
        assert!(Request::parse(command::REGION_WRITE, &write(4, &[0; 3])).is_err());
        assert!(Request::parse(command::REGION_WRITE, &write(4, &[0; 5])).is_err());
        assert!(Request::parse(command::REGION_READ, access(DATA_MAX as u32 + 1).as_bytes()).is_err());
        let multi = |count: u64, bytes| [count.as_bytes(), &vec![0; bytes]].concat();
        assert!(Request::parse(command::REGION_WRITE_MULTI, &multi(2, 48)).is_ok());
        assert!(Request::parse(command::REGION_WRITE_MULTI, &multi(2, 47)).is_err());
        assert!(Request::parse(command::REGION_WRITE_MULTI, &multi(u64::MAX / 24 + 2, 8)).is_err());
        let short = DmaMap { argsz: 31, flags: 3, offset: 0, address: 0, size: 4096 };
        assert!(Request::parse(command::DMA_MAP, short.as_bytes()).is_err());
        let unmap = |flags, size| DmaUnmap { argsz: 24, flags, address: 0, size };
        assert!(Request::parse(command::DMA_UNMAP, unmap(UNMAP_ALL, 0).as_bytes()).is_ok());
        assert!(Request::parse(command::DMA_UNMAP, unmap(UNMAP_ALL, 1).as_bytes()).is_err());
        let dirty = unmap(1, 4096);
        assert!(matches!(Request::parse(command::DMA_UNMAP, dirty.as_bytes()), Err(Errno::OPNOTSUPP)));
    }
}
