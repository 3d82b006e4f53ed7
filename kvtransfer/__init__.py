"""Moves blocks of bytes between workers.

Two nouns: a `Region` is registered memory, a transfer takes blocks from here to there.

    decode worker                                   prefill worker
    Receiver.expect(id, epoch, blocks)
                                      <-- OPEN      Sender.begin
                                          GRANT --> (may write; RENEW keeps the lease)
                          <-- BLOCK, or written     OutboundTransfer.push, chunk by chunk
                              directly and PLACED
                                      <-- COMMIT    OutboundTransfer.commit
    Committed(payload)                    ACK   --> done
    Receiver.release(id)

| module | what |
|---|---|
| region, peer, select | memory, the two ends, which transport they use |
| frames, payloads | the bytes on the wire |
| links, zmq_tcp, fake | what carries frames |
| shared_memory, locked_file, host | memory that peers map, and its cleaning up |
| sender, peer_link, outbound, lease, copier | the sending end |
| receiver, inbound, fences | the receiving end |
| io_loop | the thread that each end has |

A transport that writes directly (shared_memory; cuda_ipc to come) is a `links.DirectWriter`
and a name in `select.DIRECT`; one that sends frames needs neither.
"""
