"""What preparing a corpus needs beside its tokens: pieces, folders that outlive a kill, progress."""
