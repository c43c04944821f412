// Keeps conversations in IndexedDB: a small record of each for the list, and its messages beside it. Where the browser
// forbids storage, memory takes its place and `lasting` is false.

const NAME = "layerlift";
const head = ({ id, title, created, updated }) => ({ id, title, created, updated });
const settled = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

function open() {
  const request = indexedDB.open(NAME, 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("heads", { keyPath: "id" });
    request.result.createObjectStore("conversations", { keyPath: "id" });
  };
  return settled(request);
}

class Memory {
  lasting = false;
  kept = new Map();
  heads = async () => [...this.kept.values()].map(head);
  get = async (id) => this.kept.get(id);
  put = async (conversation) => void this.kept.set(conversation.id, conversation);
  delete = async (id) => void this.kept.delete(id);
}

class Database {
  lasting = true;
  constructor(db) {
    this.db = db;
  }
  #store(name, mode) {
    return this.db.transaction(name, mode).objectStore(name);
  }
  heads = () => settled(this.#store("heads", "readonly").getAll());
  get = (id) => settled(this.#store("conversations", "readonly").get(id));
  #write(change) {
    const both = this.db.transaction(["heads", "conversations"], "readwrite");
    change(both.objectStore("heads"), both.objectStore("conversations"));
    return new Promise((resolve, reject) => {
      both.oncomplete = () => resolve();
      both.onerror = both.onabort = () => reject(both.error);
    });
  }
  put = (conversation) =>
    this.#write((heads, conversations) => {
      heads.put(head(conversation));
      conversations.put(conversation);
    });
  delete = (id) =>
    this.#write((heads, conversations) => {
      heads.delete(id);
      conversations.delete(id);
    });
}

export async function openDatabase() {
  try {
    return new Database(await open());
  } catch {
    return new Memory();
  }
}
