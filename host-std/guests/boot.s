# A boot sector that uses the disk it came from by INT 13h, and says how that went: a letter for each step at port E9h, and at
# port F4h a number that ends the emulator, 1 for success. Assembled by the harness (GNU as and ld, linked to 7C00h).
#
# The host has put a pattern into sectors 1 to 8. It is read, compared, and written inverted to sector 64 and on; four sectors of
# it are copied to sector 32 and on with the calls of old, by cylinder, head and sector.
    .intel_syntax noprefix
    .code16
    .globl _start

    .set PATTERN, 0x8000        # sectors 1 to 8, as they were read
    .set AGAIN, 0xa000          # what is read to compare with it
    .set SECTORS, 8
    .set WORDS, SECTORS * 256

_start:
    cli
    xor ax, ax
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov sp, 0x7000
    sti
    cld
    mov [drive], dl

    # EDD is there: check extensions present.
    mov ah, 0x41
    mov bx, 0x55aa
    mov dl, [drive]
    int 0x13
    mov al, 'X'
    jc failed
    cmp bx, 0xaa55
    jne failed
    call step

    # Extended read of the pattern.
    mov ah, 0x42
    mov bx, PATTERN
    mov ecx, 1
    call extended
    mov al, 'R'
    jc failed
    call step

    # Word i of it is i * 5A35h + 1 (mod 2^16).
    mov si, PATTERN
    mov cx, WORDS
    mov bx, 1
1:  lodsw
    cmp ax, bx
    mov al, 'P'
    jne failed
    add bx, 0x5a35
    loop 1b
    call step

    # The same by cylinder 0, head 0, sector 2, four sectors.
    mov ax, 0x0204
    mov bx, AGAIN
    mov cx, 0x0002
    call old
    mov al, 'r'
    jc failed
    call step
    mov cx, 4 * 256
    call compare
    mov al, 'c'
    jne failed
    call step

    # Written to sector 33 of the track, that is LBA 32.
    mov ax, 0x0304
    mov bx, AGAIN
    mov cx, 0x0021
    call old
    mov al, 'w'
    jc failed
    call step

    # Inverted, and written to LBA 64 by the extended write.
    mov si, PATTERN
    mov di, PATTERN
    mov cx, WORDS
1:  lodsw
    not ax
    stosw
    loop 1b
    mov ax, 0x4300
    mov bx, PATTERN
    mov ecx, 64
    call extended
    mov al, 'W'
    jc failed
    call step

    # Read back.
    mov ah, 0x42
    mov bx, AGAIN
    mov ecx, 64
    call extended
    mov al, 'B'
    jc failed
    mov cx, WORDS
    call compare
    mov al, 'C'
    jne failed
    call step
    mov al, 1
    jmp end

# AX: function. BX: buffer. ECX: the first of eight sectors. Carry: failed.
extended:
    mov [packet_buffer], bx
    mov [packet_sector], ecx
    mov word ptr [packet_count], SECTORS
    mov si, offset packet
    mov dl, [drive]
    int 0x13
    ret

# AX: function and count. BX: buffer. CX: cylinder and sector. Carry: failed.
old:
    xor dx, dx
    mov dl, [drive]
    int 0x13
    ret

# CX: words of PATTERN and AGAIN to compare. Zero flag: the same.
compare:
    mov si, PATTERN
    mov di, AGAIN
    repe cmpsw
    ret

# AL: the letter of a step that went well.
step:
    out 0xe9, al
    ret

# AL: the letter of the step that failed; AH: the error of INT 13h.
failed:
    push ax
    mov al, '!'
    out 0xe9, al
    pop ax
    out 0xe9, al
    mov al, ah
    out 0xe9, al
    mov al, 2
end:
    out 0xf4, al
1:  hlt
    jmp 1b

drive:
    .byte 0

# EDD's disk address packet.
    .balign 4
packet:
    .byte 16, 0
packet_count:
    .word 0
packet_buffer:
    .word 0, 0
packet_sector:
    .long 0, 0

    .org 510
    .word 0xaa55
