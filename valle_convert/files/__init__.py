"""Files: inputs checked, outputs checked and written completely or not at all.

Everything this project writes goes through `atomic_output`: the data is written to an unnamed file
in the folder of the target, flushed to the disk, and named at the end. After any error, Ctrl-C or
`kill -9`, nothing is left and the target is unchanged. Where the system has no unnamed files (all
but Linux, and some file systems), a hidden file takes its place. Its writer locks it, so that a
later run recognizes and removes the hidden files of killed runs.

Anything but a regular file is never replaced and, except for sound, not written into. A symbolic
link is followed.
"""

from valle_convert.files.atomic import (
    atomic_output,
    atomic_outputs,
    locked_folder,
    made_folder,
    remove_stale,
    write_text_atomically,
)
from valle_convert.files.inputs import (
    ZIP_MAGIC,
    check_input_file,
    decoded,
    first_bytes,
    json_object,
    read_json_object,
    read_small_file,
    sha256_of,
)
from valle_convert.files.paths import (
    describe_os_error,
    os_fault,
    os_faults,
    path_and_number,
    stat_of,
    valid_utf8,
)
from valle_convert.files.targets import (
    check_free_space,
    check_outputs,
    explained_writes,
    is_stream,
    open_stream,
    protected,
)
