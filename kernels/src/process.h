// What the engines of one process share.
#pragma once

#include "thread_pool.h"
#include "workspace.h"

namespace kosine {

struct Process {
  ThreadPool threads;
  WorkspacePool workspaces;

  // Made when first asked for. A child of fork() gets one of its own when it first asks: threads
  // do not survive a fork, and the parent's locks may be held for ever. Packed weights belong to
  // engines, not to this: a child keeps reading its parent's pages.
  static Process& current();
};

}  // namespace kosine
