"""The files of a machine over SFTP (version 3, as OpenSSH speaks it). Relative paths begin at its home folder."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from paramiko.sftp import CMD_VERSION, SFTP_FAILURE, SFTP_OK

from infra.lean import paramiko

Answer = TypeVar("Answer")


def answers_errors(act: Callable[..., Answer]) -> Callable[..., Answer | int]:
    """An OSError becomes the status that SFTP has for it."""

    @functools.wraps(act)
    def wrapped(*arguments: Any) -> Answer | int:
        try:
            return act(*arguments)
        except OSError as error:
            return paramiko.SFTPServer.convert_errno(error.errno or 0)
        except ValueError:  # a NUL in a path
            return SFTP_FAILURE

    return wrapped


class SftpServer(paramiko.SFTPServer):
    """paramiko's server, and what it leaves out: to say that it knows POSIX renames; the exit status scp waits for."""

    def finish_subsystem(self) -> None:
        """The client has closed its end."""
        if self.sock is not None and not self.sock.closed:
            self.sock.send_exit_status(0)
        super().finish_subsystem()

    def _send_server_version(self) -> int:
        anything: Any = self
        anything._read_packet()
        message = paramiko.Message()
        message.add_int(3)
        message.add_string("posix-rename@openssh.com")
        message.add_string("1")
        anything._send_packet(CMD_VERSION, message)
        return 3


class Name(bytes):
    """A file's name as the disk has it, which need not be UTF-8, and as it is shown in a listing."""

    def __str__(self) -> str:
        return self.decode(errors="replace")


class SftpFile(paramiko.SFTPHandle):
    """An open file."""

    def __init__(self, descriptor: int, flags: int) -> None:
        super().__init__(flags)
        self.descriptor = descriptor
        self.appends = bool(flags & os.O_APPEND)

    def close(self) -> None:
        """Close it. An error goes unseen: paramiko would close it again, and that might be another file by then."""
        with contextlib.suppress(OSError):
            os.close(self.descriptor)

    @answers_errors
    def read(self, offset: int, length: int) -> bytes:
        """Up to so many bytes from there; none at the end of the file."""
        return os.pread(self.descriptor, min(length, 1 << 20), offset)

    @answers_errors
    def write(self, offset: int, data: Any) -> int:
        """All of the data, there, or at the end of a file that is open for appending."""
        rest = memoryview(data)
        while rest:
            written = os.write(self.descriptor, rest) if self.appends else os.pwrite(self.descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
        return SFTP_OK

    @answers_errors
    def stat(self) -> paramiko.SFTPAttributes:
        """What the file is."""
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.descriptor))

    @answers_errors
    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        """Change what the attributes name."""
        return change(self.descriptor, attr)


class SftpFiles(paramiko.SFTPServerInterface):
    """The file system, as the user of the machine has it."""

    def __init__(self, server: paramiko.ServerInterface, home: Path) -> None:
        super().__init__(server)
        self.home = home

    def _at(self, path: str) -> Path:
        return self.home / path  # an absolute path stays what it is

    def canonicalize(self, path: str) -> str:
        """The full path, without links and dots."""
        return str(self._at(path).resolve())

    @answers_errors
    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> SftpFile:
        """Open a file, or make it."""
        mode = 0o666 if attr.st_mode is None else stat.S_IMODE(attr.st_mode)
        return SftpFile(os.open(self._at(path), flags | os.O_CLOEXEC, mode), flags)

    @answers_errors
    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes]:
        """What is in a folder. What vanishes meanwhile is left out."""
        found = []
        with os.scandir(self._at(path)) as entries:
            for entry in entries:
                try:
                    seen = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                name: Any = Name(os.fsencode(entry.name))
                found.append(paramiko.SFTPAttributes.from_stat(seen, name))
        return found

    @answers_errors
    def stat(self, path: str) -> paramiko.SFTPAttributes:
        """What the path leads to."""
        return paramiko.SFTPAttributes.from_stat(self._at(path).stat())

    @answers_errors
    def lstat(self, path: str) -> paramiko.SFTPAttributes:
        """What the path is: a link is a link."""
        return paramiko.SFTPAttributes.from_stat(self._at(path).lstat())

    @answers_errors
    def remove(self, path: str) -> int:
        """Remove a file or a link."""
        self._at(path).unlink()
        return SFTP_OK

    @answers_errors
    def rename(self, oldpath: str, newpath: str) -> int:
        """Rename, unless something has the new name."""
        new = self._at(newpath)
        if os.path.lexists(new):
            return SFTP_FAILURE
        self._at(oldpath).rename(new)
        return SFTP_OK

    @answers_errors
    def posix_rename(self, oldpath: str, newpath: str) -> int:
        """Rename, in place of whatever has the new name."""
        self._at(oldpath).replace(self._at(newpath))
        return SFTP_OK

    @answers_errors
    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        """Make a folder."""
        self._at(path).mkdir(0o777 if attr.st_mode is None else stat.S_IMODE(attr.st_mode))
        return SFTP_OK

    @answers_errors
    def rmdir(self, path: str) -> int:
        """Remove an empty folder."""
        self._at(path).rmdir()
        return SFTP_OK

    @answers_errors
    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        """Change what the attributes name."""
        return change(self._at(path), attr)

    @answers_errors
    def readlink(self, path: str) -> str:
        """Where a link leads, as it is written."""
        return os.readlink(self._at(path))  # not pathlib, which would tidy what is written

    @answers_errors
    def symlink(self, target_path: str, path: str) -> int:
        """Make a link. Its target is written as it is given."""
        self._at(path).symlink_to(target_path)
        return SFTP_OK


def change(file: Path | int, attr: paramiko.SFTPAttributes) -> int:
    """Set a file's size, mode, owner and times, where given. Raises OSError."""
    # Not paramiko's set_file_attr (5.1), which empties a file that it is asked to cut or to extend.
    if attr.st_size is not None:
        os.truncate(file, attr.st_size)
    if attr.st_mode is not None:
        os.chmod(file, stat.S_IMODE(attr.st_mode))
    if attr.st_uid is not None and attr.st_gid is not None:
        os.chown(file, attr.st_uid, attr.st_gid)
    if attr.st_atime is not None and attr.st_mtime is not None:
        os.utime(file, (attr.st_atime, attr.st_mtime))
    return SFTP_OK
